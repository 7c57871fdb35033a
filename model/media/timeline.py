"""Turns the times of all frames of a video into the frames of a window and those to look at.

Knows numbers only: neither files nor pixels. Times are seconds from the first frame of the video.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from model.errors import MediaError
from model.media.frame_sampling import VideoRules, sample_indices, sampling_note


@dataclass(frozen=True)
class Timeline:
    """When each frame of a video is shown.

    stamps: of the frames, in the order of display. end: of the last frame. Both in `unit` seconds.
    """

    stamps: tuple[int, ...]
    end: int
    unit: Fraction

    @classmethod
    def build(
        cls, stamps: Sequence[int], end: int | None, unit: Fraction, rate: float
    ) -> "Timeline":
        """end: end of the last frame if the file tells it, else it lasts as long as the mean frame.

        rate: frames a second by the header, for a video of one frame without a duration.
        """
        last = max(stamps, default=0)
        if end is None or end <= last:
            spans = len(stamps) - 1
            step = (last - min(stamps)) / spans if spans > 0 else 0.0
            end = last + max(1, round(step or 1 / (rate * float(unit))))
        return cls(tuple(stamps), end, unit)

    def seconds(self, stamp: int) -> float:
        """Seconds from the first frame to a time stamp."""
        return (stamp - self.origin) * self.unit.numerator / self.unit.denominator

    @cached_property
    def origin(self) -> int:
        """Stamp of the first frame."""
        return min(self.stamps)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        return self.seconds(self.end)


@dataclass(frozen=True)
class Choice:
    """Which frames to keep.

    indices: of the frames to look at, counted over the whole video, ascending.
    times_s: their times, in seconds from the first frame of the video.
    stop: number of frames that have to be decoded to be sure of this choice.
    until_s: end of what has to be decoded, in seconds.
    fps: frames per second of the window, or of the whole video.
    notes: what was clamped and why.
    """

    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    stop: int
    until_s: float
    fps: float
    notes: tuple[str, ...]


def choose(
    timeline: Timeline,
    rules: VideoRules,
    start_s: float | None,
    end_s: float | None,
    group: int = 2,
) -> Choice:
    """Samples frames from the window [start_s, end_s); None = from the start, to the end.

    A window is sampled as if it were a video of its own. One that lies within a single frame gives
    that frame. group: frames of one temporal patch.
    Raises MediaError media_empty if the window holds nothing of the video.
    """
    first, stop, notes = _window(timeline, start_s, end_s)
    stamps = timeline.stamps
    whole = stop == len(stamps)
    end = timeline.end if whole else stamps[stop]
    span = max(float((end - stamps[first]) * timeline.unit), 1e-6)
    count = stop - first
    fps = count / span
    indices = tuple(first + index for index in sample_indices(count, fps, rules, group))
    if note := sampling_note(count, fps, rules, group):
        notes.append(note)
    return Choice(
        indices=indices,
        times_s=tuple(timeline.seconds(stamps[index]) for index in indices),
        # One frame beyond the window proves that no frame of the window is missing.
        stop=len(stamps) if whole else stop + 1,
        until_s=timeline.seconds(end),
        fps=fps,
        notes=tuple(notes),
    )


def _window(
    timeline: Timeline, start_s: float | None, end_s: float | None
) -> tuple[int, int, list[str]]:
    """(first, stop, notes): the frames first..stop-1 lie in the window."""
    if start_s is None and end_s is None:
        return 0, len(timeline.stamps), []
    notes: list[str] = []
    duration = timeline.duration_s
    start = 0.0 if start_s is None else start_s
    end = math.inf if end_s is None else end_s
    if math.isnan(start) or math.isnan(end) or end <= start:
        raise MediaError(
            "media_empty", f"the window is {start_s} s to {end_s} s; expected start_s before end_s"
        )
    if start >= duration or end <= 0:
        raise MediaError(
            "media_empty",
            f"the window {start:g} s to {end:g} s holds nothing of the video, which lasts "
            f"{duration:.3f} s",
        )
    if start < 0:
        notes.append(f"window begins at 0 s instead of {start:g} s")
    if end_s is not None and end > duration:
        notes.append(f"window ends with the video at {duration:.3f} s instead of {end:g} s")
    times = [timeline.seconds(stamp) for stamp in timeline.stamps]
    inside = [index for index, time in enumerate(times) if start <= time < end]
    if not inside:
        shown = max(index for index, time in enumerate(times) if time <= max(start, 0.0))
        notes.append(f"window lies within the frame at {times[shown]:.3f} s")
        return shown, shown + 1, notes
    return inside[0], inside[-1] + 1, notes
