"""Decodes pictures with Pillow's plugins, each named by the caller."""

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BlpImagePlugin,
    BmpImagePlugin,
    DcxImagePlugin,
    DdsImagePlugin,
    FitsImagePlugin,
    FliImagePlugin,
    FtexImagePlugin,
    GbrImagePlugin,
    GifImagePlugin,
    IcnsImagePlugin,
    IcoImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    McIdasImagePlugin,
    MspImagePlugin,
    PcdImagePlugin,
    PcxImagePlugin,
    PixarImagePlugin,
    PngImagePlugin,
    PsdImagePlugin,
    SgiImagePlugin,
    SpiderImagePlugin,
    SunImagePlugin,
    TgaImagePlugin,
    WebPImagePlugin,
    XbmImagePlugin,
    XpmImagePlugin,
    XVThumbImagePlugin,
)  # fmt: skip

from mediamill.model.errors import MediaError
from mediamill.model.media.formats.bit_fields import decode_fields
from mediamill.model.media.formats.depth import Declared
from mediamill.model.media.limits import MediaLimits, check_size

# Used instead of Image.open, which tries one format after another, and warns or raises by a
# process-wide limit on pixels.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BLP": BlpImagePlugin.BlpImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "DCX": DcxImagePlugin.DcxImageFile,
    "DDS": DdsImagePlugin.DdsImageFile,
    "DIB": BmpImagePlugin.DibImageFile,
    "FITS": FitsImagePlugin.FitsImageFile,
    "FLI": FliImagePlugin.FliImageFile,
    "FTEX": FtexImagePlugin.FtexImageFile,
    "GBR": GbrImagePlugin.GbrImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "ICNS": IcnsImagePlugin.IcnsImageFile,
    "ICO": IcoImagePlugin.IcoImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "MCIDAS": McIdasImagePlugin.McIdasImageFile,
    "MSP": MspImagePlugin.MspImageFile,
    "PCD": PcdImagePlugin.PcdImageFile,
    "PCX": PcxImagePlugin.PcxImageFile,
    "PIXAR": PixarImagePlugin.PixarImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "PSD": PsdImagePlugin.PsdImageFile,
    "SGI": SgiImagePlugin.SgiImageFile,
    "SPIDER": SpiderImagePlugin.SpiderImageFile,
    "SUN": SunImagePlugin.SunImageFile,
    "TGA": TgaImagePlugin.TgaImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "XBM": XbmImagePlugin.XbmImageFile,
    "XPM": XpmImagePlugin.XpmImageFile,
    "XVThumb": XVThumbImagePlugin.XVThumbImageFile,
}
_MAY_BE_ANIMATED = ("AVIF", "FLI", "WEBP")
_CARELESS_ALPHA = ("BMP", "DIB", "DDS", "ICO", "SGI", "SUN", "TGA")


@dataclass(frozen=True)
class OpenPicture:
    """A picture whose pixels are decoded.

    pixels: RGB as stored, uint8 [H, W, 3], if `picture` is only open.
    profile: the ICC profile; empty if it is damaged. orientation: None = by the picture's EXIF.
    declared: what the file says about values of more than 8 bits. notes: for the receipt.
    """

    picture: Image.Image
    pixels: npt.NDArray[np.uint8] | None = None
    profile: bytes | None = None
    orientation: int | None = None
    declared: Declared | None = None
    notes: tuple[str, ...] = ()


def check_picture_size(label: str, size: tuple[int, int], limits: MediaLimits) -> None:
    """Raises MediaError decode_too_large."""
    check_size(f"the {label}", *size, limits.max_image_pixels, limits.max_side)


def read_by_plugin(name: str, data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    """Decodes a picture with the plugin of Pillow's that has this name.

    Raises MediaError, and any exception on damage.
    """
    picture = _PLUGINS[name](io.BytesIO(data))
    check_picture_size(label, picture.size, limits)
    notes: tuple[str, ...] = ()
    if any(str(tile[0]) == "fits_gzip" for tile in picture.tile):
        raise MediaError("decode_unsupported", f"the {label} is compressed, which is not read")
    if picture.tile and str(picture.tile[0][0]) == "dds_rgb":
        arguments: Any = picture.tile[0][3]
        start = 4 + int.from_bytes(data[4:8], "little")
        masks = (*arguments[1], 0)[:4]
        decoded = decode_fields(data, start, *picture.size, arguments[0], masks, 1, label)
        return with_useful_alpha(OpenPicture(decoded, orientation=1))
    picture.load()
    if name in _MAY_BE_ANIMATED and getattr(picture, "is_animated", False):
        picture.seek(0)
        notes = ("first frame of several",)
    profile = picture.info.get("icc_profile")
    opened = OpenPicture(picture, profile=profile or None, notes=notes)
    return with_useful_alpha(opened) if name in _CARELESS_ALPHA else opened


def with_useful_alpha(opened: OpenPicture) -> OpenPicture:
    """Drops an alpha channel that is 0 everywhere: writers of old formats leave it unset."""
    picture = opened.picture
    if picture.mode not in ("RGBA", "LA") or picture.getchannel("A").getextrema() != (0, 0):
        return opened
    note = "alpha channel not used: it would hide the whole picture"
    return replace(opened, picture=picture.convert(picture.mode[:-1]), notes=(*opened.notes, note))
