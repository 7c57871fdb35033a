"""Scales picture values of more than 8 bits, and floats, to 8 bits so that they are visible.

Integers of up to 16 bits: by the significant bits that the file declares, else by the smallest of
8, 10, 12, 14 and 16 bits that holds the largest value. All other numbers: by the range that the
file declares, else from the smallest finite value to the largest.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_BITS = (8, 10, 12, 14, 16)
_CHUNK = 1 << 20  # values that are converted at once

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Declared:
    """What a file says about its values. bits: that are significant. low, high: their range.

    empty: a value that marks pixels without content.
    """

    bits: int | None = None
    low: float | None = None
    high: float | None = None
    empty: float | None = None


def scaled_to_8_bits(
    values: Array, subject: str, declared: Declared | None = None
) -> tuple[npt.NDArray[np.uint8], str]:
    """Returns the values as uint8 of the same shape, and the receipt's note.

    values: any real numbers. subject: what they are, for the note ("16-bit grey").
    """
    declared = declared or Declared()
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255), f"{subject} scaled to 8 bits"
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return _by_bits(values, subject, declared)
    if (
        values.dtype.kind == "i"
        and values.dtype.itemsize <= 2
        and values.size
        and not (values < 0).any()
    ):
        return _by_bits(values.view(f"u{values.dtype.itemsize}"), subject, declared)
    return _by_range(values, subject, declared)


def _by_bits(values: Array, subject: str, declared: Declared) -> tuple[Array, str]:
    largest = int(values.max(initial=0))
    bits, why = declared.bits, "as declared"
    if bits is None and declared.high is not None and declared.high >= 1:
        bits = int(declared.high).bit_length()
    if bits is None or largest >= 1 << bits:
        bits = next(bits for bits in _BITS if largest < 1 << bits)
        why = f"the largest value is {largest}"
    if bits >= 8:
        scaled = (values >> (bits - 8)).astype(np.uint8)
    else:
        scaled = (values.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    if bits == 16:
        return scaled, f"{subject} scaled to 8 bits"
    return scaled, f"{subject} scaled to 8 bits from {bits} significant bits ({why})"


def _by_range(values: Array, subject: str, declared: Declared) -> tuple[Array, str]:
    flat = values.reshape(-1)
    low, high, why = declared.low, declared.high, "as declared"
    if low is None or high is None or not low < high:
        low, high = _finite_range(flat, declared.empty)
        why = "its own"
    scale = 255 / (high - low) if high > low else 0.0
    scaled = np.empty(flat.shape, np.uint8)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        numbers = part.astype(np.float64)
        if declared.empty is not None:
            numbers[part == declared.empty] = low
        with np.errstate(invalid="ignore", over="ignore"):
            numbers = (numbers - low) * scale
        numbers = np.nan_to_num(numbers, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
        scaled[start : start + _CHUNK] = np.clip(np.rint(numbers), 0, 255)
    note = f"{subject} scaled to 8 bits from the range {low:g} to {high:g} ({why})"
    return scaled.reshape(values.shape), note


def _finite_range(flat: Array, empty: float | None) -> tuple[float, float]:
    """Returns the smallest and the largest finite value; (0, 0) without any."""
    low, high = np.inf, -np.inf
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if part.dtype.kind == "f":
            part = part[np.isfinite(part)]
        if empty is not None:
            part = part[part != empty]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    return (low, high) if low <= high else (0.0, 0.0)
