"""Turns the chosen frames of a video, as they come out of the decoder, into one resized tensor.

Where they come from, and whether they are the right ones, is not known here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from av.video.frame import VideoFrame

from mediamill.model.errors import MediaError
from mediamill.model.media.budgets import Budget, Size
from mediamill.model.media.containers import Format
from mediamill.model.media.limit_names import LimitName, in_order
from mediamill.model.media.patches import resize
from mediamill.model.media.timeline import Choice, Timeline
from mediamill.model.media.video_file import check_frame


@dataclass(frozen=True)
class Video:
    """The frames that are looked at.

    frames: uint8 [n, 3, H, W], upright RGB, resized; in memory [n, H, W, 3].
    times_s, indices: of each frame: seconds from the video's first frame, and its ordinal in the
        whole video. fps, total_frames: of the window that was asked for, or of the whole video.
    source_height, source_width: pixels of the upright frames before the resize.
    notes: what was clamped or changed, in words. bound_by: which limits decided.
    """

    frames: torch.Tensor
    times_s: tuple[float, ...]
    indices: tuple[int, ...]
    fps: float
    total_frames: int
    source_height: int
    source_width: int
    notes: tuple[str, ...]
    bound_by: tuple[LimitName, ...] = ()


class OtherSizeError(Exception):
    """The frames have another size than their number was chosen for. size: (height, width)."""

    def __init__(self, size: Size) -> None:
        super().__init__(f"found frames of {size[1]} x {size[0]} pixels")
        self.size = size


class FrameCollector:
    """The chosen frames, resized, as far as they have been decoded."""

    def __init__(
        self,
        found: Format,
        choice: Choice,
        budget: Budget,
        planned: Size,
    ) -> None:
        """planned: size of the frames (height, width), turned or not, that `choice` is for."""
        self.found, self.choice, self.budget, self.planned = found, choice, budget, planned
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self.frames: torch.Tensor | None = None
        self.count = 0
        self.source = (0, 0)
        self.notes: list[str] = []
        self.bound_by: tuple[LimitName, ...] = ()
        self.resized: str | None = None

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
        if self.resized:
            notes.append(self.resized)
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
            bound_by=in_order(*choice.bound_by, *self.bound_by),
        )

    def _keep(self, index: int, frame: VideoFrame) -> None:
        if frame.is_corrupt:
            raise MediaError(
                "decode_corrupt", f"frame {index} of the {self.found.label} is damaged"
            )
        check_frame(self.found, frame.width, frame.height, self.budget.limits)
        # By itself the library starts a thread for each core, for every frame anew.
        rgb = frame.to_ndarray(format="rgb24", threads=1)
        turns = frame.rotation // 90 % 4
        upright = torch.from_numpy(np.ascontiguousarray(np.rot90(rgb, turns))).permute(2, 0, 1)
        if self.frames is None:
            self.source = (upright.shape[1], upright.shape[2])
            if self.budget.lowers and sorted(self.source) != sorted(self.planned):
                raise OtherSizeError(self.source)
            count = len(self.choice.indices)
            sized = self.budget.sized(self.source, count)
            self.bound_by, self.resized = sized.bound_by, sized.note
            self.frames = torch.empty((count, *sized.size, 3), dtype=torch.uint8)
            self.frames = self.frames.permute(0, 3, 1, 2)
            if turns:
                self.notes.append(f"rotated by {90 * turns} degrees (file metadata)")
        elif self.source != upright.shape[1:] and len(self.notes) < 2:
            self.notes.append(
                f"frame size changes at frame {index}; all resized to the first one's"
            )
        height, width = self.frames.shape[2:]
        self.frames[self.count] = resize(upright, height, width, self.budget.pixels.resample)
        self.count += 1
