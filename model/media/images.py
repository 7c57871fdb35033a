"""Decodes picture files to upright RGB pixels, within limits on size and cost."""

import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mediamill.model.errors import MediaError
from mediamill.model.media.colour import upright_rgb
from mediamill.model.media.containers import detect_format
from mediamill.model.media.limits import MediaLimits, check_size
from mediamill.model.media.media_file import MediaFile, Source
from mediamill.model.media.picture_errors import picture_errors
from mediamill.model.media.picture_readers import open_picture


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
    data = media_file.read_all(limits.max_image_bytes, file_format.label)
    with picture_errors(file_format.label):
        with _without_size_warning(limits.max_image_pixels):
            opened = open_picture(file_format.name, file_format.label, data, limits)
        notes = list(opened.notes)
        pixels = upright_rgb(
            opened.picture, notes.append, convert_rgb, opened.pixels, opened.profile,
            opened.orientation, opened.declared,
        )  # fmt: skip
        return _decoded(pixels, notes)


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
    notes: list[str] = []
    with picture_errors(label):
        with _without_size_warning(picture.width * picture.height):
            picture.load()
        profile = picture.info.get("icc_profile") or None
        pixels = upright_rgb(picture, notes.append, convert_rgb, profile=profile)
        return _decoded(pixels, notes)


def _decoded(upright: npt.NDArray[np.uint8], notes: Sequence[str]) -> DecodedImage:
    return DecodedImage(torch.from_numpy(upright).permute(2, 0, 1), tuple(notes))


def _without_size_warning(pixels: int) -> AbstractContextManager[object]:
    """Suppresses the warning of Pillow plugins for large pictures, whose size is checked already.

    Filters of warnings belong to the whole process, so this is done for such sizes only.
    """
    if pixels <= (Image.MAX_IMAGE_PIXELS or 2**63):
        return nullcontext()
    return warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
