"""Animated pictures as videos: GIF, PNG, WebP and AVIF files for which a row asks for a video.

FFmpeg reads all of them but WebP, whose frames come from Pillow.
"""

import io
from array import array
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import FileFormat
from mediamill.model.media.limits import MediaLimits, check_size, out_of_memory_as_media_error
from mediamill.model.media.media_file import FileHandle, MediaFile
from mediamill.model.media.timeline import Timeline

AVIF_ANIMATION = FileFormat("video", "mov", "AVIF animation")
WEBP_ANIMATION = FileFormat("video", "webp", "WebP animation")
_MAX_MOTION_JPEG = 4 << 20  # bytes in which the second picture begins
_MILLISECOND = Fraction(1, 1000)
# As in browsers: a frame that asks for no time, or for next to none, is shown for a tenth of a
# second. FFmpeg has the same rule for GIF.
_NO_TIME_MS, _SHOWN_MS = 10, 100


def animation_format(media_file: MediaFile, picture: FileFormat) -> FileFormat | None:
    """Returns the video format of an animated picture; None for a still one.

    A GIF always counts as animated. picture: the format of the file.
    """
    if picture.name == "GIF":
        return FileFormat("video", "gif", "GIF animation")
    head = media_file.signature()
    if picture.name == "PNG" and b"acTL" in head[: head.find(b"IDAT")]:
        return FileFormat("video", "apng", "PNG animation")
    if picture.name == "WEBP" and head[12:16] == b"VP8X" and head[20] & 2:
        return WEBP_ANIMATION
    if picture.name == "JPEG" and _is_motion_jpeg(media_file):
        return FileFormat("video", "mjpeg", "motion JPEG stream")
    brands = head[8 : int.from_bytes(head[:4], "big")]
    return AVIF_ANIMATION if picture.name == "AVIF" and b"avis" in brands else None


def _is_motion_jpeg(media_file: MediaFile) -> bool:
    """Whether another picture follows right behind the end of the first one."""
    with media_file.open() as handle:
        head = handle.read(_MAX_MOTION_JPEG)
    end = head.find(b"\xff\xd9\xff\xd8\xff")
    # A thumbnail within the metadata also ends; nothing of a JPEG begins right behind it, but the
    # pictures of a burst (MPF) follow in a file of their own kind.
    return end >= 0 and b"MPF\0" not in head[:end]


def webp_timeline(media_file: MediaFile, limits: MediaLimits) -> tuple[Timeline, tuple[int, int]]:
    """Returns the times of a WebP animation's frames, and their (height, width), by its header.

    Raises MediaError.
    """
    timestamps, end = array("q"), 0
    with media_file.open() as handle:
        canvas = handle.read_at(24, 6)
        width, height = (int.from_bytes(canvas[i : i + 3], "little") + 1 for i in (0, 3))
        check_size(
            "a frame of the WebP animation", width, height, limits.max_video_pixels, limits.max_side
        )
        for duration in _durations(handle, media_file.size):
            if len(timestamps) >= limits.max_packets:
                raise MediaError(
                    "decode_too_large",
                    f"the WebP animation has more than {limits.max_packets} frames, which is the "
                    "limit",
                )
            timestamps.append(end)
            end += duration if duration > _NO_TIME_MS else _SHOWN_MS
    if not timestamps:
        raise MediaError("media_empty", "the WebP animation holds no frames")
    return Timeline(timestamps, end, _MILLISECOND), (height, width)


def webp_frames(
    media_file: MediaFile, timeline: Timeline, limits: MediaLimits
) -> Iterator[tuple[int, VideoFrame]]:
    """Yields (timestamp, frame) of each frame of a WebP animation. Raises MediaError."""
    data = media_file.read_all(limits.max_image_bytes, "WebP animation")
    with out_of_memory_as_media_error("WebP animation"):
        try:
            with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
                for number, timestamp in enumerate(timeline.timestamps):
                    picture.seek(number)
                    rgba = np.asarray(picture.convert("RGBA"))
                    frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
                    frame.pts, frame.time_base = timestamp, _MILLISECOND
                    yield timestamp, frame
        # Pillow's reader raises any of these for damaged data.
        except (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise MediaError("decode_corrupt", f"the WebP animation is damaged: {error}") from error


def _durations(handle: FileHandle, total: int) -> Iterator[int]:
    """Yields the milliseconds of each frame (chunk ANMF of the WebP container specification)."""
    offset = 12
    while offset + 8 <= total:
        header = handle.read_at(offset, 24)
        if header[:4] == b"ANMF":
            yield int.from_bytes(header[20:23], "little")
        size = int.from_bytes(header[4:8], "little")
        offset += 8 + size + size % 2
