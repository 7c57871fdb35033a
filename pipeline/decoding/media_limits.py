"""Turns the limits of a job into the ceilings on what one medium may cost."""

from mediamill.model.media.limits import MediaLimits
from mediamill.schemas.job import Limits


def media_limits(limits: Limits) -> MediaLimits:
    """What the job says; the others are the library's own."""
    return MediaLimits(
        max_image_pixels=limits.max_image_pixels,
        max_video_pixels=limits.max_video_pixels,
        max_frames_decoded=limits.max_frames_decoded,
        max_duration_s=limits.max_duration_s,
    )
