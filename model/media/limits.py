"""What one picture or video may cost before it is refused. Checked before memory is taken."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaLimits:
    """Ceilings on what comes from outside; beyond one of them a medium is `decode_too_large`.

    What a picture takes while it is decoded, in bytes per pixel as stored, besides its file: JPEG 3
    (6 turned upright, 9 progressive, 11 CMYK), GIF 4, PNG, BMP and TIFF 7 (10 turned), AVIF 13,
    WebP 19. So 20 bytes for each of max_image_pixels are enough for any: 3 GB by default. A video
    takes what its decoder keeps of earlier frames: H.264 up to 17 of them, of 1.5 bytes per pixel
    (6 in 4:4:4 of more than 8 bits), and 6 bytes per pixel of the frame that is looked at.

    max_image_pixels: height * width of a picture as stored, from its header.
    max_image_bytes: of a picture's file, which is read whole; a video's is not.
    max_scans: times that a decoder has to go over a JPEG picture; encoders make about ten.
    max_side: pixels of a picture's or a frame's longer side.
    max_video_pixels: height * width of one frame as stored.
    max_packets: of a video's stream, in the whole file: their times are kept until the frames are
        chosen, whatever the window.
    max_frames_decoded: frames that have to be decoded, kept or not.
    max_duration_s: seconds of video that have to be decoded: up to the end of the window, if one
        was asked for, from the last place before it where decoding may begin.
    max_visual_tokens: tokens of one picture or video after the resize; beyond it the prompt cannot
        fit the model (`context_too_long`). None = no such ceiling.
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
