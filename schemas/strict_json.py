"""Parses JSON as the standard has it: what Python's parser lets pass besides is refused."""

import json
import math
from typing import Any

_MAX_SHOWN = 80  # characters of a value in an error
_MAX_DIGITS = 4_000  # of a whole number; Python refuses to convert more than 4,300


def parse_strict(text: str) -> Any:
    """Returns the value of a JSON text.

    Raises ValueError for text that is no JSON, NaN, infinities, numbers beyond a double or of
    thousands of digits, and repeated keys; RecursionError for values that nest too deep.
    """
    return json.loads(
        text,
        object_pairs_hook=_unique_keys,
        parse_constant=_refuse_constant,
        parse_float=_finite,
        parse_int=_whole,
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"found the key {repeated[:_MAX_SHOWN]!r} twice")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"found {name}")


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(
            f"found a number of {len(digits):,} digits, expected at most {_MAX_DIGITS:,}"
        )
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"found {digits[:_MAX_SHOWN]}, which is beyond a double")
    return value
