"""Lists the dotted keys of a job file, and describes the value of each."""

import json
import textwrap

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mediamill.schemas.job_config import JobConfig
from mediamill.schemas.job_types import Expected


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in JobConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _keys(sections: dict[str, type[BaseModel]]) -> dict[str, FieldInfo]:
    keys = {name: info for name, info in JobConfig.model_fields.items() if name not in sections}
    for section, model in sections.items():
        keys |= {f"{section}.{name}": info for name, info in model.model_fields.items()}
    return keys


_WIDTH, _INDENT = 100, " " * 4  # of the key descriptions
# Sections that only some kinds of job read.
_KINDS = {
    "annotate": ("annotate",),
    "score": ("score",),
    "embed": ("embed",),
    "json_answers": ("caption", "annotate"),
}
SECTIONS = _sections()
KEYS = _keys(SECTIONS)  # every dotted key of a job file, in the order of the models


def expected(key: str) -> str:
    """Returns a description of the values that a key or section takes."""
    if key in SECTIONS:
        return f"a mapping with keys of {', '.join(SECTIONS[key].model_fields)}"
    return next(note.words for note in KEYS[key].metadata if isinstance(note, Expected))


def takes_text(key: str) -> bool:
    """Whether a key's value is free text, or a list of texts."""
    return key in KEYS and expected(key).startswith("text")


def describe_keys(kind: str | None = None) -> str:
    """Returns the help of all keys: name and default, then the meaning and allowed values.

    kind: of job; the keys of other kinds are left out. None: all keys.
    """
    lines = []
    for key, field in KEYS.items():
        if kind is not None and kind not in _KINDS.get(key.partition(".")[0], (kind,)):
            continue
        lines.append(key if field.is_required() else f"{key} = {to_json(field.default)}")
        meaning = f"{field.description} ({expected(key)})"
        lines += textwrap.wrap(meaning, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join(lines)


def to_json(value: object) -> str:
    """Returns a value as JSON text, which is also YAML."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=str)
