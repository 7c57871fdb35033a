"""Turns the chosen frames of a video, as they come out of the decoder, into one resized tensor.

Where they come from, and whether they are the right ones, is not known here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from av.video.frame import VideoFrame

from model.errors import MediaError, PromptError
from model.media.containers import Format
from model.media.frame_sampling import VideoRules, max_pixels_for
from model.media.image_rules import ImageRules
from model.media.limits import MediaLimits
from model.media.patches import resize
from model.media.timeline import Choice, Timeline
from model.media.video_file import check_frame


@dataclass(frozen=True)
class Video:
    """The frames that are looked at.

    frames: uint8 [n, 3, H, W], upright RGB, resized; in memory [n, H, W, 3].
    times_s, indices: of each frame: seconds from the video's first frame, and its ordinal in the
        whole video. fps, total_frames: of the window that was asked for, or of the whole video.
    source_height, source_width: pixels of the upright frames before the resize.
    notes: what was clamped or changed, in words.
    """

    frames: torch.Tensor
    times_s: tuple[float, ...]
    indices: tuple[int, ...]
    fps: float
    total_frames: int
    source_height: int
    source_width: int
    notes: tuple[str, ...]


class KeptFrames:
    """The chosen frames, resized, as far as they have been decoded."""

    def __init__(
        self,
        found: Format,
        choice: Choice,
        rules: VideoRules,
        pixels: ImageRules,
        limits: MediaLimits,
    ) -> None:
        self.found, self.choice = found, choice
        self.rules, self.pixels, self.limits = rules, pixels, limits
        self.frames: torch.Tensor | None = None
        self.count = 0
        self.source = (0, 0)
        self.notes: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether all have been seen."""
        return self.count == len(self.choice.indices)

    @property
    def next_index(self) -> int:
        """Ordinal of the next frame to keep, if there is one."""
        return self.choice.indices[self.count]

    def see(self, index: int, frame: VideoFrame) -> None:
        """A frame that came out, by its ordinal; kept if it is wanted."""
        while not self.complete and self.next_index == index:
            self._keep(index, frame)

    def video(self, timeline: Timeline, damaged: int = 0) -> Video:
        """All of them. damaged: packets that were left out at the beginning."""
        assert self.frames is not None
        choice = self.choice
        notes = list(choice.notes) + self.notes
        count, _, height, width = self.frames.shape
        most = max_pixels_for(count, self.pixels, self.rules)
        if note := self.pixels.resize_note(self.source, (height, width), most):
            notes.append(note)
        if damaged:
            notes.append(f"{damaged} packets before the first whole frame left out")
        return Video(
            frames=self.frames,
            times_s=choice.times_s,
            indices=choice.indices,
            fps=choice.fps,
            total_frames=len(timeline.stamps),
            source_height=self.source[0],
            source_width=self.source[1],
            notes=tuple(notes),
        )

    def _keep(self, index: int, frame: VideoFrame) -> None:
        if frame.is_corrupt:
            raise MediaError(
                "decode_corrupt", f"frame {index} of the {self.found.label} is damaged"
            )
        check_frame(self.found, frame.width, frame.height, self.limits)
        # By itself the library starts a thread for each core, for every frame anew.
        rgb = frame.to_ndarray(format="rgb24", threads=1)
        turns = frame.rotation // 90 % 4
        upright = torch.from_numpy(np.ascontiguousarray(np.rot90(rgb, turns))).permute(2, 0, 1)
        if self.frames is None:
            self.source = (upright.shape[1], upright.shape[2])
            count = len(self.choice.indices)
            size = frame_size(self.source, count, self.rules, self.pixels, self.limits)
            self.frames = torch.empty((count, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
            if turns:
                self.notes.append(f"rotated by {90 * turns} degrees (file metadata)")
        elif self.source != upright.shape[1:] and len(self.notes) < 2:
            self.notes.append(
                f"frame size changes at frame {index}; all resized to the first one's"
            )
        height, width = self.frames.shape[2:]
        self.frames[self.count] = resize(upright, height, width, self.pixels.resample)
        self.count += 1


def frame_size(
    source: tuple[int, int],
    count: int,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits,
) -> tuple[int, int]:
    """(height, width) after the resize of each of `count` frames of the size `source`.

    Raises MediaError decode_unsupported for sizes that cannot be used, and PromptError
    context_too_long if the frames are more visual tokens than limits.max_visual_tokens.
    """
    try:
        height, width = pixels.size_of(*source, max_pixels_for(count, pixels, rules))
    except ValueError as error:
        raise MediaError("decode_unsupported", str(error)) from error
    tokens = pixels.tokens_of((height, width), count)
    if limits.max_visual_tokens is not None and tokens > limits.max_visual_tokens:
        raise PromptError(
            "context_too_long",
            f"{count} frames of {width} x {height} pixels are {tokens} visual tokens; the model "
            f"takes {limits.max_visual_tokens}: lower the video's max_pixels, max_frames or fps",
        )
    return height, width
