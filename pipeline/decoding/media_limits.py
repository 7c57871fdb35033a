"""Selects the limits of a job that hold for one medium."""

from mediamill.model.media.limits import MediaLimits
from mediamill.schemas.job import Limits


def media_limits(limits: Limits) -> MediaLimits:
    """Those that the job sets; the others have the library's defaults."""
    return MediaLimits(
        max_image_pixels=limits.max_image_pixels,
        max_video_pixels=limits.max_video_pixels,
        max_frames_decoded=limits.max_frames_decoded,
        max_duration_s=limits.max_duration_s,
    )
