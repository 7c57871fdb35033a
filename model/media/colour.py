"""Converts an open Pillow picture of any mode and orientation to upright sRGB.

The rules are those of the reference (transformers): transparency over white, then RGB. The
deviations: values of more than 8 bits are scaled to 8 bits (the reference clips them to white), an
embedded colour profile is applied, and the EXIF orientation is applied to every picture (the
reference applies it to files only).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from mediamill.model.errors import MediaError
from mediamill.model.media.colour_profile import ProfileUse, use_of_profile
from mediamill.model.media.formats.depth import Declared, scaled_to_8_bits

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
    profile: bytes | None = None,
    orientation: int | None = None,
    declared: Declared | None = None,
) -> npt.NDArray[np.uint8]:
    """Returns the pixels as uint8 [H, W, 3], contiguous.

    picture: loaded; it need only be open if `pixels` are given.
    add_note: is called with a sentence for each change, for the receipt.
    convert: False refuses pictures that are not RGB.
    pixels: the RGB pixels as stored, uint8 [H, W, 3], if they are decoded already; they may change.
    profile: the embedded ICC profile. orientation: as EXIF counts; None = that of the picture.
    declared: what the file says about values of more than 8 bits.
    Raises MediaError decode_unsupported for refused modes.
    """
    if not convert and picture.mode != "RGB":
        raise MediaError(
            "decode_unsupported",
            f"the picture has the mode {picture.mode} and do_convert_rgb is false; expected RGB",
        )
    if orientation is None:
        orientation = _orientation(picture)
    use = use_of_profile(profile, _colours(picture, pixels is not None))
    if use.note:
        add_note(use.note)
    if pixels is None:
        pixels = _rgb(picture, add_note, use, declared)
    elif use.transform is not None:
        _convert_in_place(pixels, use)
    if orientation in _FLIPS:
        add_note(f"turned upright (EXIF orientation {orientation})")
        return _flipped(pixels, *_FLIPS[orientation])
    return pixels


def _colours(picture: Image.Image, is_decoded: bool) -> str:
    """Returns the mode of the picture without transparency, of those that profiles are for."""
    if picture.mode == "CMYK":
        return "CMYK"
    is_grey = picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;16")
    return "L" if is_grey and not is_decoded else "RGB"


def _convert_in_place(pixels: npt.NDArray[np.uint8], use: ProfileUse) -> None:
    rows = max(1, _BAND_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        band = Image.fromarray(pixels[top : top + rows])
        pixels[top : top + rows] = np.asarray(use.apply(band))


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


def _rgb(
    picture: Image.Image,
    add_note: Callable[[str], None],
    use: ProfileUse,
    declared: Declared | None,
) -> npt.NDArray[np.uint8]:
    """Returns uint8 [H, W, 3], converted band by band: no second copy of the picture is made."""
    picture = _of_8_bits(picture, add_note, declared)
    width, height = picture.size
    whole = np.empty((height, width, 3), np.uint8)
    band_rows = max(1, _BAND_PIXELS // width)
    has_transparency = False
    for top in range(0, height, band_rows):
        stop = min(height, top + band_rows)
        band = picture if band_rows >= height else picture.crop((0, top, width, stop))
        pixels, is_transparent = _band_rgb(band, use)
        whole[top:stop] = np.asarray(pixels)
        has_transparency = has_transparency or is_transparent
    if has_transparency:
        add_note("transparency laid over white")
    return whole


def _of_8_bits(
    picture: Image.Image, add_note: Callable[[str], None], declared: Declared | None
) -> Image.Image:
    """Returns a picture of 8-bit values: L for grey of 16 and 32 bits, LA if a value is clear."""
    mode = picture.mode
    if mode not in ("I", "F") and not mode.startswith("I;16"):
        return picture
    values = np.asarray(picture)
    kind = "float grey" if mode == "F" else f"{32 if mode == 'I' else 16}-bit grey"
    grey, note = scaled_to_8_bits(values, kind, declared)
    add_note(note)
    clear = picture.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(grey)
    alpha = np.where(values == clear, 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, alpha], axis=2))


def _band_rgb(picture: Image.Image, use: ProfileUse) -> tuple[Image.Image, bool]:
    """Returns a band as RGB, and whether any of its pixels are transparent."""
    # Pillow converts premultiplied modes to their plain form only.
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    has_alpha = "A" in picture.getbands() or picture.info.get("transparency") is not None
    if use.transform is None and not has_alpha:
        return picture.convert("RGB"), False
    if not has_alpha:
        return use.apply(picture), False
    rgba = picture.convert("RGBA")
    alpha = rgba.getchannel("A")
    is_transparent = alpha.getextrema() != (255, 255)
    if use.transform is not None:
        rgba = use.apply(rgba.convert("L" if use.mode == "L" else "RGB"))
        rgba.putalpha(alpha)
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB"), is_transparent
