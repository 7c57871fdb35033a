"""Collects the selected frames of a video, as the decoder returns them, in one resized tensor."""

from dataclasses import dataclass

import torch
from av.video.frame import VideoFrame

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import FileFormat
from mediamill.model.media.display import Display, frame_notes, frame_orientation, rgb_pixels
from mediamill.model.media.limit_names import LimitName, ordered
from mediamill.model.media.pixel_budget import FrameSize, PixelBudget, Size
from mediamill.model.media.resize import resize
from mediamill.model.media.timeline import FrameSelection, Timeline
from mediamill.model.media.video_file import check_frame_size, conversion_errors_as_media_errors

TRANSPARENCY_NOTE = "transparency laid over white"


@dataclass(frozen=True)
class Video:
    """The frames of a video that the model sees.

    frames: uint8 [n, 3, H, W], upright RGB, resized; in memory [n, H, W, 3].
    times_s, indices: of each frame, counted from the video's first frame.
    fps, total_frames: of the window, or of the whole video.
    source_height, source_width: of the upright frames, in square pixels, before the resize.
    notes: what was clamped or changed, in words. bound_by: the limits that decided it.
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


class FrameSizeError(Exception):
    """The frames have another size (height, width) than the one for which they were selected."""

    def __init__(self, size: Size) -> None:
        super().__init__(f"found frames of {size[1]} x {size[0]} pixels")
        self.size = size


class FrameCollector:
    """Resizes and stores the selected frames one by one; `count` are stored so far."""

    def __init__(
        self,
        file_format: FileFormat,
        selection: FrameSelection,
        budget: PixelBudget,
        expected_size: Size,
        display: Display,
    ) -> None:
        """expected_size: (height, width) for which `selection` was made, before any turn.

        display: how the frames are shown.
        """
        self.file_format, self.selection, self.budget = file_format, selection, budget
        self.expected_size, self.display = expected_size, display
        self.reset()

    def reset(self) -> None:
        """Drops all frames."""
        self.frames: torch.Tensor | None = None
        self.count = 0
        self.source_size = (0, 0)
        self.notes: list[str] = []
        self.size_changed = False
        self.frame_size: FrameSize | None = None

    @property
    def complete(self) -> bool:
        """Whether all selected frames are stored."""
        return self.count == len(self.selection.indices)

    @property
    def next_index(self) -> int:
        """Index of the next selected frame; only if not `complete`."""
        return self.selection.indices[self.count]

    def add(self, index: int, frame: VideoFrame) -> None:
        """Takes a decoded frame and its index in the video; stores it if it is selected.

        Raises MediaError for a damaged or too large frame, and FrameSizeError.
        """
        while not self.complete and self.next_index == index:
            self._store(index, frame)

    def video(
        self, timeline: Timeline, file_notes: tuple[str, ...], skipped_packets: int = 0
    ) -> Video:
        """Returns the complete video.

        file_notes: on the whole file.
        skipped_packets: undecodable packets before the first frame, for the notes.
        """
        assert self.frames is not None
        assert self.frame_size is not None
        selection = self.selection
        notes = [*selection.notes, *file_notes, *self.display.notes, *self.notes]
        if self.frame_size.note:
            notes.append(self.frame_size.note)
        if skipped_packets:
            notes.append(f"{skipped_packets} packets before the first whole frame left out")
        return Video(
            frames=self.frames,
            times_s=selection.times_s,
            indices=selection.indices,
            fps=selection.fps,
            total_frames=len(timeline.timestamps),
            source_height=self.source_size[0],
            source_width=self.source_size[1],
            notes=tuple(notes),
            bound_by=ordered(*selection.bound_by, *self.frame_size.bound_by),
        )

    def _store(self, index: int, frame: VideoFrame) -> None:
        if frame.is_corrupt:
            raise MediaError(
                "decode_corrupt", f"frame {index} of the {self.file_format.label} is damaged"
            )
        check_frame_size(self.file_format, frame.width, frame.height, self.budget.limits)
        with conversion_errors_as_media_errors(self.file_format):
            rgb, over_white = rgb_pixels(frame)
        orientation, matrix_note = frame_orientation(frame)
        cropped = self.display.cropped(rgb)
        size = self.display.size(*cropped.shape[:2])
        size = size[::-1] if orientation.transposed else size
        pixels = torch.from_numpy(orientation.apply(cropped)).permute(2, 0, 1)
        if self.frames is None:
            self.source_size = size
            if self.budget.adapts and sorted(size) != sorted(self.expected_size):
                raise FrameSizeError(size)
            count = len(self.selection.indices)
            self.frame_size = self.budget.frame_size(size, count)
            self.frames = torch.empty((count, *self.frame_size.size, 3), dtype=torch.uint8)
            self.frames = self.frames.permute(0, 3, 1, 2)
            notes = (*self.display.size_notes, orientation.note, matrix_note, *frame_notes(frame))
            self.notes = [note for note in notes if note]
        elif self.source_size != size and not self.size_changed:
            self.size_changed = True
            self.notes.append(
                f"frame size changes at frame {index}; all resized to the first one's"
            )
        if over_white and TRANSPARENCY_NOTE not in self.notes:
            self.notes.append(TRANSPARENCY_NOTE)
        height, width = self.frames.shape[2:]
        self.frames[self.count] = resize(pixels, height, width, self.budget.pixels.resample)
        self.count += 1
