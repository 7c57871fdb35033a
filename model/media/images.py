"""Turns the bytes of a picture file into upright RGB pixels.

Knows files, ceilings and damage; the resize and the patches are in patches.py, videos in video.py.
"""

import io
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mediamill.model.errors import MediaError
from mediamill.model.media.colour import upright_rgb
from mediamill.model.media.containers import recognise
from mediamill.model.media.content import MediaFile, Source
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.jpeg import decode_jpeg, scan_count
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.patches import (
    normalize,
    patchify_image,
    patchify_video,
    resize,
    smart_resize,
)

__all__ = [
    "DecodedImage",
    "ImageRules",
    "decode_image",
    "normalize",
    "patchify_image",
    "patchify_video",
    "read_image",
    "resize",
    "smart_resize",
]

# The plugin classes are used instead of Image.open: that one warns or raises by a global ceiling.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}


@dataclass(frozen=True)
class DecodedImage:
    """pixels: uint8 [3, H, W], upright RGB, in memory as [H, W, 3] or [3, H, W].

    notes: what was changed on the way, in words.
    """

    pixels: torch.Tensor
    notes: tuple[str, ...]


def decode_image(source: Source, max_pixels: int | None = None) -> torch.Tensor:
    """uint8 [3, H, W]: the upright RGB pixels of a picture file (of an animation: the first frame).

    max_pixels: ceiling for height * width as stored, checked in the header before decoding.
    Raises MediaError: media_empty, decode_unsupported, decode_too_large, decode_corrupt.
    """
    most = sys.maxsize if max_pixels is None else max_pixels
    return read_image(source, MediaLimits(max_image_pixels=most)).pixels


def read_image(
    source: Source, limits: MediaLimits | None = None, convert_rgb: bool = True
) -> DecodedImage:
    """As `decode_image`, with the notes on what was changed.

    limits: what it may cost; its size as stored is checked in the header, before decoding.
    convert_rgb: False refuses pictures that are stored in other colours (decode_unsupported).
    """
    limits = limits or MediaLimits()
    content = MediaFile.of(source)
    found = recognise(content)
    if found.kind != "image":
        raise MediaError(
            "decode_unsupported", f"the file is a {found.label}, a picture was asked for"
        )
    data = content.whole(limits.max_image_bytes, found.label)
    if found.name == "WEBP":  # its decoder takes memory for the canvas as soon as it is opened
        _check_size(found.label, *_webp_size(data), limits)
    try:
        picture = _PLUGINS[found.name](io.BytesIO(data))
    except Exception as error:
        raise _damaged(found.label, error) from error
    _check_size(found.label, *picture.size, limits)
    notes: list[str] = []
    try:
        if found.name == "JPEG" and (scans := scan_count(data)) > limits.max_scans:
            raise MediaError(
                "decode_too_large",
                f"the {found.label} has {scans} scans; the limit is {limits.max_scans}",
            )
        if found.name == "JPEG" and picture.mode in ("RGB", "L"):
            pixels = decode_jpeg(data, picture.height, picture.width)
            if pixels is not None:
                return _decoded(picture, notes, convert_rgb, pixels)
        with _without_size_warning(picture):
            picture.load()
        if getattr(picture, "is_animated", False):
            picture.seek(0)
            notes.append("first frame of several")
        return _decoded(picture, notes, convert_rgb)
    except Exception as error:
        raise _damaged(found.label, error) from error


def take_picture(
    picture: Image.Image, max_pixels: int | None = None, convert_rgb: bool = True
) -> DecodedImage:
    """The upright RGB pixels of an open picture, at the frame where it stands; as `read_image`.

    Raises MediaError: media_empty, decode_unsupported, decode_too_large, decode_corrupt.
    """
    limits = MediaLimits(max_image_pixels=sys.maxsize if max_pixels is None else max_pixels)
    label = f"picture of mode {picture.mode}"
    if 0 in picture.size:
        raise MediaError("media_empty", f"the {label} is {picture.width} x {picture.height} pixels")
    _check_size(label, *picture.size, limits)
    notes: list[str] = []
    try:
        with _without_size_warning(picture):
            picture.load()
        return _decoded(picture, notes, convert_rgb)
    except Exception as error:
        raise _damaged(label, error) from error


def _decoded(
    picture: Image.Image,
    notes: list[str],
    convert_rgb: bool,
    pixels: npt.NDArray[np.uint8] | None = None,
) -> DecodedImage:
    upright = upright_rgb(picture, notes.append, convert_rgb, pixels)
    return DecodedImage(torch.from_numpy(upright).permute(2, 0, 1), tuple(notes))


def _check_size(label: str, width: int, height: int, limits: MediaLimits) -> None:
    if width * height > limits.max_image_pixels:
        raise MediaError(
            "decode_too_large",
            f"the {label} is {width} x {height} = {width * height} pixels; "
            f"the limit is {limits.max_image_pixels}",
        )
    if max(width, height) > limits.max_side:
        raise MediaError(
            "decode_too_large",
            f"the {label} is {width} x {height} pixels; the limit of one side is {limits.max_side}",
        )


def _without_size_warning(picture: Image.Image) -> AbstractContextManager[object]:
    """Some plugins warn beyond Pillow's own size, although the ceiling here has been checked.

    Switching a warning off concerns the whole process for the moment: done for such sizes only.
    """
    if picture.width * picture.height <= (Image.MAX_IMAGE_PIXELS or 2**63):
        return nullcontext()
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


def _damaged(label: str, error: Exception) -> MediaError:
    if isinstance(error, MediaError):
        return error
    if isinstance(
        error, (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)
    ):
        return MediaError("decode_too_large", f"the {label} is too large to decode: {error}")
    return MediaError("decode_corrupt", f"the {label} is damaged: {error}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) from the first chunk's header; (0, 0) if it is cut off."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if chunk == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
    return width & 0x3FFF, height & 0x3FFF
