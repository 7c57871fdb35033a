"""Turns what is wrong with a job's values into sentences: where, key, what was found, expected."""

from collections.abc import Mapping

from pydantic import ValidationError

from mediamill.schemas.job_keys import KEYS, SECTIONS, expected, shown
from mediamill.schemas.job_models import JobConfig
from mediamill.schemas.job_text import Given
from mediamill.schemas.nearest import nearest

_KINDS: dict[type, str] = {
    bool: "true or false",
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}
_LONGEST = 60


def unknown_keys(given: Mapping[str, Given]) -> dict[str, str]:
    """A sentence for each key that no job has, naming the nearest one that there is."""
    return {
        key: f"{one.where}: unknown key '{key}', {_instead(key)}"
        for key, one in given.items()
        if key not in KEYS and key not in SECTIONS
    }


def wrong_values(error: ValidationError, given: Mapping[str, Given], source: str) -> dict[str, str]:
    """A sentence for each key with a wrong value, and each key of `source` that is missing.

    The several complaints of a union about one value are one mistake.
    """
    sentences: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        names = [str(part) for part in detail["loc"]]
        dotted = ".".join(names[:2])
        key = dotted if dotted in KEYS else names[0]
        if key in sentences:
            continue
        if detail["type"] == "missing":
            sentences[key] = f"{source}: found no key '{key}', expected {KEYS[key].description}"
        elif detail["type"] == "value_error":
            where = next(one.where for name, one in given.items() if name.startswith(key))
            sentences[key] = f"{where}: {key}: {detail['ctx']['error']}"
        else:
            one = given[key]
            sentences[key] = f"{one.where}: {key}: found {_found(one)}, expected {expected(key)}"
    return sentences


def _instead(key: str) -> str:
    guess = nearest(key, KEYS if "." in key else [*KEYS, *SECTIONS])
    if guess:
        return f"did you mean '{guess}'?"
    model = SECTIONS.get(key.partition(".")[0], JobConfig)
    return f"the keys there are: {', '.join(model.model_fields)}"


def _found(one: Given) -> str:
    """A value and its kind, on one short line: `"64" (text)`."""
    text = shown(one.value)
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    kind = _KINDS.get(type(one.value))
    return f"{text} ({kind})" if kind else text
