"""Reads typed values from a JSON object of a checkpoint.

Each method raises ModelError, naming the file and the key, for a value of another type or range.
The reader records which keys were read, so that the others can be shown to a user.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from mediamill.model.errors import ModelError


class JsonReader:
    """The keys of one JSON object.

    raw: the object.
    where: the name of its file in errors.
    prefix: stands before a key in errors, such as "vision_config.".
    read: the keys that were read.
    """

    def __init__(self, raw: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.raw = raw
        self.where = where
        self.prefix = prefix
        self.read: set[str] = set()

    def get(self, key: str) -> Any:
        """The value, unchecked; None where the key is absent."""
        self.read.add(key)
        return self.raw.get(key)

    def part(self, key: str) -> dict[str, Any]:
        """The object under `key`; empty where it is absent or null."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            self.refuse(key, "an object")
        return value or {}

    def whole(self, key: str, default: int | None, minimum: int = 1) -> int:
        """An integer of at least `minimum`. With a default, the key may be absent or null."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not is_whole(value) or value < minimum:
            self.refuse(key, "a positive integer" if minimum == 1 else f"an integer >= {minimum}")
        return int(value)

    def whole_or_none(self, key: str, minimum: int = 0) -> int | None:
        """An integer of at least `minimum`, or None where it is absent or null."""
        return None if self.get(key) is None else self.whole(key, None, minimum)

    def number(self, key: str, default: float | None) -> float:
        """A finite number above 0. With a default, the key may be absent or null."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not is_number(value) or value <= 0:
            self.refuse(key, "a positive number")
        return float(value)

    def number_or_none(self, key: str) -> float | None:
        """A finite number above 0, or None where it is absent or null."""
        return None if self.get(key) is None else self.number(key, None)

    def fraction(self, key: str) -> float:
        """A number in [0, 1); 0 where it is absent or null."""
        value = self.get(key)
        if value is None:
            return 0.0
        if not is_number(value) or not 0 <= value < 1:
            self.refuse(key, "a number of at least 0 and below 1")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """A flag; `default` where it is absent or null."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def name(self, key: str, default: str, allowed: Sequence[str]) -> str:
        """One of the names `allowed`; `default` where it is absent or null."""
        value = self.get(key)
        if value is None:
            return default
        if value not in allowed:
            self.refuse(key, " or ".join(repr(name) for name in allowed))
        return str(value)

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` positive numbers."""
        value = self.get(key)
        if not isinstance(value, list) or not all(is_number(x) and x > 0 for x in value):
            self.refuse(key, f"a list of {length} positive numbers")
        if len(value) != length:
            raise ModelError(
                f"{self.where}: {self.prefix}{key} has {len(value)} numbers, expected {length}"
            )
        return tuple(float(x) for x in value)

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raises ModelError with the value of the key and the expected one."""
        value = repr(self.raw.get(key))
        value = value if len(value) <= 80 else value[:77] + "..."
        raise ModelError(f"{self.where}: {self.prefix}{key} is {value}, expected {expected}")


def is_whole(value: object) -> bool:
    """Whether a JSON value is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
