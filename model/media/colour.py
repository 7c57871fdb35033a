"""Turns an opened Pillow picture of any mode and orientation into upright RGB bytes.

The rules are the reference's (transparency over white, then RGB), except for 16-bit grey, which the
reference clips to white and which is scaled here, for 32-bit modes, which are refused, and for the
EXIF orientation, which the reference applies to files and not to open pictures.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from mediamill.model.errors import MediaError

_BAND = 1024**2  # pixels that are converted at once

# EXIF orientation -> whether rows run upwards, columns run leftwards, and both change places then.
_TURNS: dict[int, tuple[bool, bool, bool]] = {
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
    note: Callable[[str], None],
    convert: bool = True,
    pixels: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3], contiguous; `note` is told what was changed on the way.

    picture: loaded, or only opened if `pixels` are given: its RGB pixels as stored, [H, W, 3].
    convert: False takes RGB as it is and refuses all other modes.
    Raises MediaError decode_unsupported for those, and for 32-bit grey and float pictures.
    """
    if not convert and picture.mode != "RGB":
        raise MediaError(
            "decode_unsupported",
            f"the picture has the mode {picture.mode} and do_convert_rgb is false; expected RGB",
        )
    # An orientation that the loader has applied already (TIFF) is no longer in the metadata.
    orientation = _orientation(picture)
    if pixels is None:
        pixels = _rgb(picture, note) if convert else np.array(picture, dtype=np.uint8)
    if orientation in _TURNS:
        note(f"turned upright (EXIF orientation {orientation})")
        return _turned(pixels, *_TURNS[orientation])
    return pixels


def _turned(
    pixels: npt.NDArray[np.uint8], upwards: bool, leftwards: bool, swapped: bool
) -> npt.NDArray[np.uint8]:
    whole = pixels.view("V3")[..., 0]  # a pixel is moved in one piece
    turned = whole[:: -1 if upwards else 1, :: -1 if leftwards else 1]
    turned = np.ascontiguousarray(turned.T if swapped else turned)
    return turned.view(np.uint8).reshape(*turned.shape, 3)


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - Pillow's parser raises whatever damage makes
        return 1  # metadata that cannot be read say nothing; the pixels are still good
    return value if isinstance(value, int) else 1


def _rgb(picture: Image.Image, note: Callable[[str], None]) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3], band by band: no second picture of the whole size is ever made."""
    if picture.mode in ("I", "F"):
        raise MediaError(
            "decode_unsupported",
            f"the picture has 32-bit grey values (mode {picture.mode}), whose white is not known; "
            "expected 8 or 16 bits",
        )
    if picture.mode.startswith("I;16"):
        note("16-bit grey scaled to 8 bits")
    width, height = picture.size
    whole = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND // width)
    transparent = False
    for top in range(0, height, rows):
        stop = min(height, top + rows)
        band = picture if rows >= height else picture.crop((0, top, width, stop))
        pixels, seen_through = _band_rgb(band)
        whole[top:stop] = np.asarray(pixels)
        transparent = transparent or seen_through
    if transparent:
        note("transparency laid over white")
    return whole


def _band_rgb(picture: Image.Image) -> tuple[Image.Image | npt.NDArray[np.uint8], bool]:
    """RGB pixels of a part of a picture, and whether any of them were transparent."""
    if picture.mode.startswith("I;16"):
        return _from_grey16(picture)
    if picture.mode in (
        "La",
        "RGBa",
    ):  # premultiplied: Pillow converts these to their plain form only
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB"), False
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    seen_through = rgba.getchannel("A").getextrema() != (255, 255)
    return Image.alpha_composite(white, rgba).convert("RGB"), seen_through


def _from_grey16(picture: Image.Image) -> tuple[npt.NDArray[np.uint8], bool]:
    values = np.asarray(picture)
    grey = (values >> 8).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey[..., None], isinstance(transparent, int)
