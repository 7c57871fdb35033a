"""Defines the types of job keys, each with the words that an error sentence uses for it."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


@dataclass(frozen=True)
class Expected:
    """The words that help and error sentences use for the values of a key."""

    words: str


def to_tuple(value: object) -> object:
    """Converts a YAML list to the tuple of a frozen model, and one bare name to a tuple of one."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"found '{repeated[0]}' more than once, expected each name once")
    return names


Flag = Annotated[bool, Expected("true or false")]
Text = Annotated[str, Field(pattern=r"\S"), Expected("text that is not blank")]
OptionalText = Annotated[Text | None, Expected("text that is not blank, or null")]
Count = Annotated[int, Field(ge=1), Expected("a whole number of at least 1")]
OptionalCount = Annotated[Count | None, Expected("a whole number of at least 1, or null")]
OptionalWhole = Annotated[
    Annotated[int, Field(ge=0)] | None, Expected("a whole number of at least 0, or null")
]
AutoOrCount = Annotated[Literal["auto"] | Count, Expected("auto, or a whole number of at least 1")]
RANGE = re.compile(r"([1-9][0-9]{0,8})\.\.([1-9][0-9]{0,8})")


def _ordered(value: str) -> str:
    match = RANGE.fullmatch(value)
    if match and int(match[1]) > int(match[2]):
        raise ValueError(f"found {value}, expected the smaller number first")
    return value


AutoCountOrRange = Annotated[
    Literal["auto"]
    | Count
    | Annotated[str, Field(pattern=f"^{RANGE.pattern}$"), AfterValidator(_ordered)],
    Expected("auto, a whole number of at least 1, or a range with the smaller first such as 2..8"),
]
Positive = Annotated[float, Field(gt=0), Expected("a number greater than 0")]
OptionalPositive = Annotated[Positive | None, Expected("a number greater than 0, or null")]
NonNegative = Annotated[float, Field(ge=0), Expected("a number of at least 0")]
OptionalShare = Annotated[
    float | None, Field(ge=0, le=1), Expected("a number from 0 to 1, or null")
]
OptionalPositiveShare = Annotated[
    float | None, Field(gt=0, le=1), Expected("a number above 0 and at most 1, or null")
]
Bytes = Annotated[int, Field(ge=1024**2), Expected("a whole number of bytes, at least 1 MiB")]
Names = Annotated[
    tuple[Text, ...],
    BeforeValidator(to_tuple),
    AfterValidator(_unique),
    Expected("a list of column names"),
]
OptionalTexts = Annotated[
    Annotated[tuple[Text, ...], AfterValidator(_unique)] | None,
    BeforeValidator(to_tuple),
    Expected("a list of texts that are not blank, or null"),
]


def check_order(config: BaseModel, low: str, high: str) -> None:
    """Raises ValueError when the value of the key `low` is above that of `high`."""
    smallest, largest = getattr(config, low), getattr(config, high)
    if smallest is not None and largest is not None and smallest > largest:
        raise ValueError(
            f"found {low} {smallest} above {high} {largest}, expected {low} to be at most {high}"
        )


FINGERPRINT_DEFAULT = "fingerprint_default"
_T = TypeVar("_T")


def key(default: _T, description: str, *, added_later: bool = False) -> _T:
    """Declares a key of a section.

    added_later: whether outputs exist that are older than the key. Their fingerprints lack it, so
        new ones leave it out at its default, which must then never change an answer.
    """
    extra: dict[str, Any] | None = {FINGERPRINT_DEFAULT: default} if added_later else None
    return Field(default=default, description=description, json_schema_extra=extra)


class Strict(BaseModel):
    """A frozen section that refuses unknown keys and values of other types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
