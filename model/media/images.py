"""Decodes picture files to upright RGB pixels, within limits on size and cost."""

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from mediamill.model.media.containers import detect_format
from mediamill.model.media.jpeg import decode_jpeg, scan_count
from mediamill.model.media.limits import MediaLimits, check_size
from mediamill.model.media.media_file import MediaFile, Source

# Used instead of Image.open, which warns or raises by a process-wide limit on pixels.
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
    """A decoded picture: uint8 [3, H, W], upright RGB, in memory as [H, W, 3] or [3, H, W].

    notes: what was changed, in words.
    """

    pixels: torch.Tensor
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[2]


def decode_image(source: Source, max_pixels: int | None = None) -> torch.Tensor:
    """Returns the upright RGB pixels of a picture file, or of an animation's first frame.

    The result is uint8 [3, H, W].
    max_pixels: limit on height * width as stored, checked in the header before decoding.
    Raises MediaError: media_empty, decode_unsupported, decode_too_large, decode_corrupt.
    """
    limit = sys.maxsize if max_pixels is None else max_pixels
    return read_image(source, MediaLimits(max_image_pixels=limit)).pixels


def read_image(
    source: Source, limits: MediaLimits | None = None, convert_rgb: bool = True
) -> DecodedImage:
    """As `decode_image`, with notes on what was changed.

    limits: checked before memory is allocated.
    convert_rgb: False refuses pictures that are not stored as RGB (decode_unsupported).
    """
    limits = limits or MediaLimits()
    media_file = MediaFile.of(source)
    file_format = detect_format(media_file)
    if file_format.kind != "image":
        raise MediaError(
            "decode_unsupported", f"the file is a {file_format.label}, a picture was asked for"
        )
    subject = f"the {file_format.label}"
    max_size = limits.max_image_pixels, limits.max_side
    data = media_file.read_all(limits.max_image_bytes, file_format.label)
    notes: list[str] = []
    with _errors_as_media_errors(file_format.label):
        if file_format.name == "WEBP":  # Pillow allocates the canvas when it opens the file
            check_size(subject, *_webp_size(data), *max_size)
        picture = _PLUGINS[file_format.name](io.BytesIO(data))
        check_size(subject, *picture.size, *max_size)
        if file_format.name == "JPEG" and (scans := scan_count(data)) > limits.max_scans:
            raise MediaError(
                "decode_too_large",
                f"the {file_format.label} has {scans} scans; the limit is {limits.max_scans}",
            )
        if file_format.name == "JPEG" and picture.mode in ("RGB", "L"):
            pixels = decode_jpeg(data, picture.height, picture.width)
            if pixels is not None:
                return _converted(picture, notes, convert_rgb, pixels)
        with _without_size_warning(picture):
            picture.load()
        if getattr(picture, "is_animated", False):
            picture.seek(0)
            notes.append("first frame of several")
        return _converted(picture, notes, convert_rgb)


def read_open_picture(
    picture: Image.Image, max_pixels: int | None = None, convert_rgb: bool = True
) -> DecodedImage:
    """Returns the upright RGB pixels of an open Pillow picture, at its current frame.

    max_pixels: limit on height * width. convert_rgb: as for `read_image`.
    Raises MediaError: media_empty, decode_unsupported, decode_too_large, decode_corrupt.
    """
    limit = sys.maxsize if max_pixels is None else max_pixels
    label = f"picture of mode {picture.mode}"
    if 0 in picture.size:
        raise MediaError("media_empty", f"the {label} is {picture.width} x {picture.height} pixels")
    check_size(f"the {label}", *picture.size, limit, MediaLimits.max_side)
    with _errors_as_media_errors(label):
        with _without_size_warning(picture):
            picture.load()
        return _converted(picture, [], convert_rgb)


def _converted(
    picture: Image.Image,
    notes: list[str],
    convert_rgb: bool,
    pixels: npt.NDArray[np.uint8] | None = None,
) -> DecodedImage:
    upright = upright_rgb(picture, notes.append, convert_rgb, pixels)
    return DecodedImage(torch.from_numpy(upright).permute(2, 0, 1), tuple(notes))


def _without_size_warning(picture: Image.Image) -> AbstractContextManager[object]:
    """Suppresses the warning of Pillow plugins for large pictures, whose size is checked already.

    Filters of warnings belong to the whole process, so this is done for such sizes only.
    """
    if picture.width * picture.height <= (Image.MAX_IMAGE_PIXELS or 2**63):
        return nullcontext()
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)


@contextmanager
def _errors_as_media_errors(label: str) -> Iterator[None]:
    """Turns any error of Pillow into a MediaError: on damage its plugins raise any exception."""
    try:
        yield
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        message = f"the {label} is too large to decode: {error}"
        raise MediaError("decode_too_large", message) from error
    except Exception as error:
        raise MediaError("decode_corrupt", f"the {label} is damaged: {error}") from error


def _webp_size(data: bytes) -> tuple[int, int]:
    """Returns (width, height) from the header of the first chunk; (0, 0) if it is cut off.

    Source: RFC 9649, sections 2.5 to 2.7.
    """
    chunk_type, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if chunk_type == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk_type == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
    return width & 0x3FFF, height & 0x3FFF
