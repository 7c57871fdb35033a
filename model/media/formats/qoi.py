"""Decodes QOI pictures with FFmpeg; Pillow reads them with a loop in Python."""

import io
import math

import av
import numpy as np
from PIL import Image, QoiImagePlugin

from mediamill.model.errors import MediaError

_END = bytes(7) + b"\1"
_HEADER_BYTES = 14
_MAX_SLOW_PIXELS = 300_000  # that the loop in Python may take


def stored_size(data: bytes) -> tuple[int, int]:
    """Returns (width, height) from the header; zeros if it is cut off."""
    return int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")


def decode_qoi(data: bytes) -> Image.Image:
    """Returns a picture of mode RGB or RGBA; the size is checked before.

    Raises MediaError decode_corrupt, and Pillow's errors on damage.
    """
    if data.find(_END, _HEADER_BYTES) < 0:  # FFmpeg shows a part as if it were the whole
        if math.prod(stored_size(data)) > _MAX_SLOW_PIXELS:
            raise MediaError("decode_corrupt", "the QOI picture is damaged: its end is missing")
        picture = QoiImagePlugin.QoiImageFile(io.BytesIO(data))
        picture.load()
        return picture
    decoder = av.CodecContext.create("qoi", "r")
    decoder.thread_count = 1
    try:
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    except av.FFmpegError as error:
        raise MediaError("decode_corrupt", f"the QOI picture is damaged: {error}") from error
    if not frames:
        raise MediaError("decode_corrupt", "the QOI picture is damaged: it has no pixels")
    return Image.fromarray(np.ascontiguousarray(frames[0].to_ndarray()))
