"""What one picture or video may cost before it is refused. Checked before memory is taken."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaLimits:
    """Ceilings on what comes from outside; beyond one of them a medium is `decode_too_large`.

    max_image_pixels: height * width of a picture as stored, from its header.
    max_video_pixels: height * width of one frame as stored.
    max_frames_decoded: frames that have to be decoded, kept or not.
    max_duration_s: seconds of video that have to be decoded: up to the end of the window, if one
        was asked for, from the last place before it where decoding may begin.
    max_visual_tokens: tokens of one picture or video after the resize; beyond it the prompt cannot
        fit the model (`context_too_long`). None = no such ceiling.
    """

    max_image_pixels: int = 150_000_000
    max_video_pixels: int = 8192 * 4320
    max_frames_decoded: int = 500_000
    max_duration_s: float = 4 * 3600.0
    max_visual_tokens: int | None = None
