"""Checks preprocessor options.

Every function raises ModelError, in one sentence, for a value that cannot be used; `where` names
the source of the options in it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from mediamill.model.checkpoint.json_reader import is_number
from mediamill.model.errors import ModelError

# Steps of the reference that are implemented.
_KNOWN_SWITCHES = (
    "do_resize", "do_rescale", "do_normalize", "do_convert_rgb", "do_sample_frames",
)  # fmt: skip


def refuse_unknown_steps(options: Mapping[str, Any], where: str) -> None:
    """Raises ModelError for a step that is switched on and not implemented, as do_center_crop."""
    for key, value in options.items():
        if key.startswith("do_") and key not in _KNOWN_SWITCHES and value:
            raise ModelError(
                f"{where}: {key} is {value!r}, expected false: this step is not supported"
            )


def refuse_unknown_keys(options: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises ModelError for a key that is not one of `known`."""
    unknown = sorted(str(key) for key in options if key not in known)
    if unknown:
        raise ModelError(f"{where}: found the key '{unknown[0]}', expected any of {sorted(known)}")


def read_set(
    options: Mapping[str, Any], readers: Mapping[str, Callable[[str, str, Any], Any]], where: str
) -> dict[str, Any]:
    """Returns the checked values of the keys of `readers`, without those missing or null."""
    return {
        key: read(where, key, options[key])
        for key, read in readers.items()
        if options.get(key) is not None
    }


def switch(where: str, key: str, value: object) -> bool:
    """Returns `value` if it is a boolean."""
    if not isinstance(value, bool):
        raise ModelError(f"{where}: {key} is {value!r}, expected true or false")
    return value


def positive(where: str, key: str, value: object) -> int:
    """Returns `value` if it is a whole number above 0; 3.0 counts as one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ModelError(f"{where}: {key} is {value!r}, expected a whole number above 0")
    return value


def number(where: str, key: str, value: Any) -> float:
    """Returns `value` if it is a finite number."""
    if not is_number(value):
        raise ModelError(f"{where}: {key} is {value!r}, expected a number")
    return float(value)


def triple(where: str, key: str, value: Any) -> tuple[float, float, float]:
    """Returns a number for each colour; one number stands for all three."""
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(parts) not in (1, 3) or not all(is_number(part) for part in parts):
        raise ModelError(f"{where}: {key} is {value!r}, expected three numbers or one")
    red, green, blue = (float(part) for part in parts * (3 // len(parts)))
    return red, green, blue
