"""The resource limits of one picture or video, which are checked before memory is allocated."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mediamill.model.errors import MediaError

_TORCH_OUT_OF_MEMORY = "DefaultCPUAllocator"  # torch raises a plain RuntimeError that names it


@dataclass(frozen=True)
class MediaLimits:
    """Limits on untrusted media. A medium beyond one of them is refused as `decode_too_large`.

    Decoding a picture takes, in bytes per stored pixel and besides its file: JPEG 3 (6 with an
    EXIF orientation, 9 progressive, 11 CMYK), GIF 4, PNG, BMP and TIFF 7 (10 with an orientation),
    JPEG 2000 11, AVIF 13, WebP 19. So 20 bytes for each of max_image_pixels are enough for these:
    3 GB by default. A TIFF of more than 8 bits takes two and a half times the size of its values.
    A video takes its decoder's reference frames (H.264: up to 17 frames of 1.5 bytes per pixel, or
    6 in 4:4:4 of more than 8 bits) and 6 bytes per pixel of the frame that is converted.

    max_image_pixels: height * width of a picture as stored, read from its header.
    max_image_bytes: size of a picture's file, which is read whole (a video's file is not).
    max_scans: scans of a JPEG picture, each of which decodes it again; encoders write about ten.
    max_side: pixels of the longer side of a picture or frame.
    max_video_pixels: height * width of one frame as stored.
    max_packets: packets of a video's stream in the whole file, whatever the window, because their
        timestamps are held until the frames are selected.
    max_frames_decoded: frames that have to be decoded, selected or not.
    max_duration_s: seconds of video that have to be decoded: from the last usable keyframe before
        the window, if there is a window, to its end.
    max_visual_tokens: tokens of one picture or video after the resize; beyond it the prompt cannot
        fit the model (`context_too_long`). None = no such limit.
    """

    max_image_pixels: int = 150_000_000
    max_image_bytes: int = 512 * 1024**2
    max_scans: int = 200
    max_side: int = 200_000
    max_video_pixels: int = 8192 * 4320
    max_packets: int = 5_000_000
    max_frames_decoded: int = 500_000
    max_duration_s: float = 4 * 3600.0
    max_visual_tokens: int | None = None


def check_size(
    subject: str, width: int, height: int, max_pixels: int, max_side: int | None = None
) -> None:
    """Raises MediaError decode_too_large for a picture or frame (`subject`) beyond the limits."""
    if width * height > max_pixels:
        raise MediaError(
            "decode_too_large",
            f"{subject} is {width} x {height} = {width * height} pixels; the limit is {max_pixels}",
        )
    if max_side is not None and max(width, height) > max_side:
        raise MediaError(
            "decode_too_large",
            f"{subject} is {width} x {height} pixels; the limit of one side is {max_side}",
        )


@contextmanager
def out_of_memory_as_media_error(label: str) -> Iterator[None]:
    """Turns a failed allocation into MediaError decode_too_large.

    Decoding runs in processes with a memory limit, so a failed allocation is the medium's fault.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and _TORCH_OUT_OF_MEMORY not in str(error):
            raise
        raise MediaError("decode_too_large", f"no memory to decode the {label}") from error
