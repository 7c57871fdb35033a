"""Turns the times of all frames of a video into the frames of a window and those to look at.

Knows numbers only: neither files nor pixels. Times are seconds from the first frame of the video.
"""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mediamill.model.errors import MediaError
from mediamill.model.media.frame_sampling import VideoRules, sample_indices, sampling_clamp
from mediamill.model.media.limit_names import LimitName, in_order


@dataclass(frozen=True)
class Timeline:
    """When each frame of a video is shown.

    stamps: int64, of the frames, in the order of display, never descending. end: of the last frame.
    Both in `unit` seconds.
    """

    stamps: "array[int]"
    end: int
    unit: Fraction

    @classmethod
    def build(
        cls, stamps: Sequence[int], end: int | None, unit: Fraction, rate: float
    ) -> "Timeline":
        """stamps: sorted. end: of the last frame if the file tells it, else it lasts as long as the
        mean frame.

        rate: frames a second by the header, for a video of one frame without a duration.
        """
        last = stamps[-1] if stamps else 0
        if end is None or end <= last:
            spans = len(stamps) - 1
            step = (last - stamps[0]) / spans if spans > 0 else 0.0
            end = last + max(1, round(step or 1 / (rate * float(unit))))
        return cls(array("q", stamps), end, unit)

    def seconds(self, stamp: int) -> float:
        """Seconds from the first frame to a time stamp."""
        return (stamp - self.origin) * self.unit.numerator / self.unit.denominator

    @property
    def origin(self) -> int:
        """Stamp of the first frame."""
        return self.stamps[0]

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
    notes: what was clamped and why. bound_by: which limits did that.
    """

    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    stop: int
    until_s: float
    fps: float
    notes: tuple[str, ...]
    bound_by: tuple[LimitName, ...] = ()


# From the frames that there are and those that are wanted to those that fit, which limits lowered
# them, and in words.
Fit = Callable[[int, int], tuple[int, tuple[LimitName, ...], str]]


def choose(
    timeline: Timeline,
    rules: VideoRules,
    start_s: float | None,
    end_s: float | None,
    group: int = 2,
    fit: Fit | None = None,
) -> Choice:
    """Samples frames from the window [start_s, end_s); None = from the start, to the end.

    A window is sampled as if it were a video of its own. One that lies within a single frame gives
    that frame. group: frames of one temporal patch. fit: for limits on all frames together.
    Raises MediaError media_empty if the window holds nothing of the video.
    """
    first, stop, notes = _window(timeline, start_s, end_s)
    stamps = timeline.stamps
    whole = stop == len(stamps)
    end = timeline.end if whole else stamps[stop]
    span = max(float((end - stamps[first]) * timeline.unit), 1e-6)
    count = stop - first
    fps = count / span
    bounds: tuple[LimitName, ...] = ("window",) if notes else ()
    indices, clamps, words = sampled(count, fps, rules, group, fit)
    notes.extend(words)
    return Choice(
        indices=tuple(first + index for index in indices),
        times_s=tuple(timeline.seconds(stamps[first + index]) for index in indices),
        # One frame beyond the window proves that no frame of the window is missing.
        stop=len(stamps) if whole else stop + 1,
        until_s=timeline.seconds(end),
        fps=fps,
        notes=tuple(notes),
        bound_by=in_order(*bounds, *clamps),
    )


def sampled(
    total: int, fps: float, rules: VideoRules, group: int, fit: Fit | None = None
) -> tuple[list[int], tuple[LimitName, ...], list[str]]:
    """The indices to look at of `total` frames, which limits decided how many, and in words."""
    indices = sample_indices(total, fps, rules, group)
    clamp = sampling_clamp(total, fps, rules, group)
    bounds, notes = ((clamp[0],), [clamp[1]]) if clamp else ((), [])
    if fit is None:
        return indices, bounds, notes
    count, lowered, words = fit(total, len(indices))
    if not lowered:
        return indices, bounds, notes
    return sample_indices(total, fps, rules, group, count), lowered, [words]


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
    stamps = timeline.stamps
    first = bisect_left(stamps, start, key=timeline.seconds)
    stop = bisect_left(stamps, end, key=timeline.seconds)
    if first == stop:
        shown = bisect_right(stamps, max(start, 0.0), key=timeline.seconds) - 1
        notes.append(f"window lies within the frame at {timeline.seconds(stamps[shown]):.3f} s")
        return shown, shown + 1, notes
    return first, stop, notes
