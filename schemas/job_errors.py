"""Writes the sentences for mistakes in a job: place, key, found value, expected value."""

from collections.abc import Mapping

from pydantic import ValidationError

from mediamill.schemas.job_config import JobConfig
from mediamill.schemas.job_help import KEYS, SECTIONS, expected, to_json
from mediamill.schemas.job_yaml import LocatedValue
from mediamill.schemas.nearest import nearest

_KIND_NAMES: dict[type, str] = {
    bool: "true or false",
    str: "text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}
_MAX_SHOWN = 60


def unknown_keys(given: Mapping[str, LocatedValue]) -> dict[str, str]:
    """Returns a sentence for each unknown key, naming the nearest known one."""
    return {
        key: f"{located.where}: unknown key '{key}', {_suggestion(key)}"
        for key, located in given.items()
        if key not in KEYS and key not in SECTIONS
    }


def wrong_values(
    error: ValidationError, given: Mapping[str, LocatedValue], source: str
) -> dict[str, str]:
    """Returns a sentence for each wrong value, and for each key that `source` lacks.

    pydantic reports one error for each member of a union: the first one counts.
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
            where = next(located.where for name, located in given.items() if name.startswith(key))
            sentences[key] = f"{where}: {key}: {detail['ctx']['error']}"
        else:
            located = given[key]
            sentences[key] = (
                f"{located.where}: {key}: found {_found(located)}, expected {expected(key)}"
            )
    return sentences


def _suggestion(key: str) -> str:
    known = nearest(key, KEYS if "." in key else [*KEYS, *SECTIONS])
    if known:
        return f"did you mean '{known}'?"
    model = SECTIONS.get(key.partition(".")[0], JobConfig)
    return f"the keys are: {', '.join(model.model_fields)}"


def _found(located: LocatedValue) -> str:
    """Returns a value and its kind on one short line: `"64" (text)`."""
    text = to_json(located.value)
    if len(text) > _MAX_SHOWN:
        text = text[: _MAX_SHOWN - 3] + "..."
    kind = _KIND_NAMES.get(type(located.value))
    return f"{text} ({kind})" if kind else text
