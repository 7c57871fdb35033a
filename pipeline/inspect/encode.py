"""Encodes frames as pictures for pages and files."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

from mediamill.pipeline.inspect.seen import Frame

_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI. width, height: in pixels. time_s: of a video's frame."""

    uri: str
    width: int
    height: int
    time_s: float | None = None


def encode(frame: Frame, max_width: int | None = None, max_height: int | None = None) -> Picture:
    """Returns a frame as a JPEG, shrunk to fit into max_width x max_height pixels."""
    picture = Image.fromarray(frame.pixels)
    picture.thumbnail((max_width or picture.width, max_height or picture.height))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY, optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(f"data:image/jpeg;base64,{encoded}", *picture.size, frame.time_s)
