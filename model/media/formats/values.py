"""Makes a Pillow picture of 8-bit values from values of any depth."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mediamill.model.media.formats.depth import Declared, scaled_to_8_bits


def picture_of_values(
    values: npt.NDArray[Any], colours: str, declared: Declared, inverted: bool = False
) -> tuple[Image.Image, tuple[str, ...]]:
    """Returns values [H, W, C] as a Pillow picture of 8-bit values, and notes.

    colours: as Pillow's mode. inverted: 0 is white.
    """
    notes: tuple[str, ...] = ()
    has_alpha = colours[-1] in "Aa"
    shown = values[..., :-1] if has_alpha else values
    if values.dtype != np.uint8 or declared.bits is not None:
        kind = "grey" if colours[0] == "L" and colours != "LAB" else "colour"
        depth = "float" if values.dtype.kind == "f" else f"{values.dtype.itemsize * 8}-bit"
        scaled, note = scaled_to_8_bits(shown, f"{depth} {kind}", declared)
        notes = (note,)
        if has_alpha:
            scaled = np.concatenate([scaled, _alpha(values[..., -1:], shown)], axis=2)
        values = scaled
    if inverted:
        values = 255 - values if not has_alpha else np.concatenate(
            [255 - values[..., :-1], values[..., -1:]], axis=2
        )  # fmt: skip
    height, width = values.shape[:2]
    pixels = np.ascontiguousarray(values, np.uint8)
    return Image.frombytes(colours, (width, height), pixels.tobytes()), notes


def _alpha(alpha: npt.NDArray[Any], colours: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns uint8 [H, W, 1]: opaque is the largest number of the type, or 1 for floats."""
    if alpha.dtype.kind == "f":
        shares: npt.NDArray[Any] = np.clip(np.nan_to_num(alpha, nan=0.0), 0, 1)
        result: npt.NDArray[Any] = np.rint(shares * 255).astype(np.uint8)
        return result
    most = int(max(alpha.max(initial=0), colours.max(initial=0)))
    bits = next(
        (bits for bits in (8, 10, 12, 14, 16) if most < 1 << bits), alpha.dtype.itemsize * 8
    )
    shifted: npt.NDArray[Any] = np.maximum(alpha, 0) >> (bits - 8)
    return shifted.astype(np.uint8)
