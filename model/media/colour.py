"""Converts an open Pillow picture of any mode and EXIF orientation to upright RGB.

The rules are those of the reference (transformers): transparency over white, then RGB. There are
three deviations: 16-bit grey is scaled to 8 bits (the reference clips it to white), 32-bit modes
are refused, and the EXIF orientation is applied to every picture (the reference applies it to files
only).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from mediamill.model.errors import MediaError

_BAND_PIXELS = 1024**2  # converted at once

# EXIF orientation (tag 0x0112, EXIF 2.32 section 4.6.4) -> how to make the stored pixels upright:
# flip vertically, flip horizontally, and then transpose.
_FLIPS: dict[int, tuple[bool, bool, bool]] = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


def upright_rgb(
    picture: Image.Image,
    add_note: Callable[[str], None],
    convert: bool = True,
    pixels: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Returns the pixels as uint8 [H, W, 3], contiguous.

    picture: loaded; it need only be open if `pixels` are given.
    add_note: is called with a sentence for each change, for the receipt.
    convert: False refuses pictures that are not RGB.
    pixels: the RGB pixels as stored, uint8 [H, W, 3], if they are decoded already.
    Raises MediaError decode_unsupported for refused modes, and for 32-bit grey and float pictures.
    """
    if not convert and picture.mode != "RGB":
        raise MediaError(
            "decode_unsupported",
            f"the picture has the mode {picture.mode} and do_convert_rgb is false; expected RGB",
        )
    # Pillow's TIFF loader applies the orientation itself and removes it from the metadata.
    orientation = _orientation(picture)
    if pixels is None:
        pixels = _rgb(picture, add_note) if convert else np.array(picture, dtype=np.uint8)
    if orientation in _FLIPS:
        add_note(f"turned upright (EXIF orientation {orientation})")
        return _flipped(pixels, *_FLIPS[orientation])
    return pixels


def _flipped(
    pixels: npt.NDArray[np.uint8], vertically: bool, horizontally: bool, transpose: bool
) -> npt.NDArray[np.uint8]:
    whole = pixels.view("V3")[..., 0]  # one element a pixel: numpy moves its 3 bytes at once
    flipped = whole[:: -1 if vertically else 1, :: -1 if horizontally else 1]
    flipped = np.ascontiguousarray(flipped.T if transpose else flipped)
    return flipped.view(np.uint8).reshape(*flipped.shape, 3)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - on damage Pillow's parser raises any exception
        return 1  # unreadable metadata are ignored: the pixels are still good
    return value if isinstance(value, int) else 1


def _rgb(picture: Image.Image, add_note: Callable[[str], None]) -> npt.NDArray[np.uint8]:
    """Returns uint8 [H, W, 3], converted band by band: no second copy of the picture is made."""
    if picture.mode in ("I", "F"):
        raise MediaError(
            "decode_unsupported",
            f"the picture has 32-bit grey values (mode {picture.mode}), whose white is not known; "
            "expected 8 or 16 bits",
        )
    if picture.mode.startswith("I;16"):
        add_note("16-bit grey scaled to 8 bits")
    width, height = picture.size
    whole = np.empty((height, width, 3), np.uint8)
    band_rows = max(1, _BAND_PIXELS // width)
    has_transparency = False
    for top in range(0, height, band_rows):
        stop = min(height, top + band_rows)
        band = picture if band_rows >= height else picture.crop((0, top, width, stop))
        pixels, is_transparent = _band_rgb(band)
        whole[top:stop] = np.asarray(pixels)
        has_transparency = has_transparency or is_transparent
    if has_transparency:
        add_note("transparency laid over white")
    return whole


def _band_rgb(picture: Image.Image) -> tuple[Image.Image | npt.NDArray[np.uint8], bool]:
    """Returns a band as RGB, and whether any of its pixels are transparent."""
    if picture.mode.startswith("I;16"):
        return _from_grey16(picture)
    # Pillow converts premultiplied modes to their plain form only.
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB"), False
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    is_transparent = rgba.getchannel("A").getextrema() != (255, 255)
    return Image.alpha_composite(white, rgba).convert("RGB"), is_transparent


def _from_grey16(picture: Image.Image) -> tuple[npt.NDArray[np.uint8], bool]:
    values = np.asarray(picture)
    grey = (values >> 8).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey[..., None], isinstance(transparent, int)
