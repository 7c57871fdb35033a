"""Selects the frames of a video, or of a window of it, from the times at which frames are shown."""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mediamill.model.errors import MediaError
from mediamill.model.media.frame_sampling import VideoRules, sample_indices, sampling_clamp
from mediamill.model.media.limit_names import LimitName, ordered


@dataclass(frozen=True)
class Timeline:
    """When each frame of a video is shown: from its timestamp until the next one's or `end`.

    timestamps: int64, the frames' presentation timestamps (PTS) in display order, never descending.
    end: end of the last frame, in the same units.
    time_base: seconds of one unit, as FFmpeg's time_base.
    """

    timestamps: "array[int]"
    end: int
    time_base: Fraction

    @classmethod
    def build(
        cls, timestamps: Sequence[int], end: int | None, time_base: Fraction, rate: float
    ) -> "Timeline":
        """Makes a timeline of sorted timestamps.

        end: of the last frame. If None or too early, this frame lasts as long as the mean one.
        rate: frames per second by the header, for a video of one frame without a duration.
        """
        last = timestamps[-1] if timestamps else 0
        if end is None or end <= last:
            intervals = len(timestamps) - 1
            step = (last - timestamps[0]) / intervals if intervals > 0 else 0.0
            end = last + max(1, round(step or 1 / (rate * float(time_base))))
        return cls(array("q", timestamps), end, time_base)

    def seconds(self, timestamp: int) -> float:
        """Returns the seconds from the first frame to a timestamp."""
        elapsed = timestamp - self.timestamps[0]
        return elapsed * self.time_base.numerator / self.time_base.denominator

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        return self.seconds(self.end)


@dataclass(frozen=True)
class FrameSelection:
    """The frames of a video that the model sees.

    indices, times_s: of these frames, ascending, counted from the first frame of the video.
    frames_needed, end_s: how many frames, and how many seconds, have to be decoded to verify them.
    fps: frames per second of the window, or of the whole video.
    notes: what was clamped and why, in words. bound_by: the limits that clamped it.
    """

    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    frames_needed: int
    end_s: float
    fps: float
    notes: tuple[str, ...]
    bound_by: tuple[LimitName, ...] = ()


# (frames of the video or window, frames sampled) -> (frames that fit, limits that lowered it, note)
FitFrames = Callable[[int, int], tuple[int, tuple[LimitName, ...], str]]


def select_frames(
    timeline: Timeline,
    rules: VideoRules,
    start_s: float | None,
    end_s: float | None,
    group: int = 2,
    fit: FitFrames | None = None,
) -> FrameSelection:
    """Samples frames from the window [start_s, end_s); None = the video's start or end.

    The window is sampled as if the frames whose timestamps lie in it were a video of their own, at
    the rate of these frames over the seconds that they last. One within a single frame gives that
    frame. Where the rate varies, frames are spread over time, not by their number.

    group: frames of one temporal patch.
    fit: lowers the number of frames to the limits on all frames together.
    Raises MediaError media_empty if no part of the video lies in the window.
    """
    first, stop, notes = _window(timeline, start_s, end_s)
    timestamps = timeline.timestamps
    reaches_end = stop == len(timestamps)
    end = timeline.end if reaches_end else timestamps[stop]
    span_s = max(float((end - timestamps[first]) * timeline.time_base), 1e-6)
    count = stop - first
    fps = count / span_s
    window_limit: tuple[LimitName, ...] = ("window",) if notes else ()
    indices, limit_names, sampling_notes = sample_within_budget(count, fps, rules, group, fit)
    indices = [first + index for index in indices]
    if count - len(indices) >= group:  # otherwise all frames are used
        spread = _spread_over_time(timestamps, first, stop, end, indices)
        if spread is not None:
            indices, spread_note = spread
            sampling_notes = [*sampling_notes, spread_note]
    return FrameSelection(
        indices=tuple(indices),
        times_s=tuple(timeline.seconds(timestamps[index]) for index in indices),
        # One frame beyond the window proves that no frame of the window is missing.
        frames_needed=len(timestamps) if reaches_end else stop + 1,
        end_s=timeline.seconds(end),
        fps=fps,
        notes=(*notes, *sampling_notes),
        bound_by=ordered(*window_limit, *limit_names),
    )


def exact_selection(timeline: Timeline, indices: Sequence[int]) -> FrameSelection:
    """Selects the frames with these ascending indices.

    Raises MediaError media_empty if the video has fewer frames.
    """
    timestamps = timeline.timestamps
    if not indices or indices[-1] >= len(timestamps):
        wanted = indices[-1] + 1 if indices else 1
        raise MediaError(
            "media_empty", f"the video has {len(timestamps)} frames, expected at least {wanted}"
        )
    # As for a window: one more frame proves that none is missing.
    frames_needed = min(indices[-1] + 2, len(timestamps))
    return FrameSelection(
        indices=tuple(indices),
        times_s=tuple(timeline.seconds(timestamps[index]) for index in indices),
        frames_needed=frames_needed,
        end_s=timeline.seconds(timestamps[indices[-1]]),
        fps=len(timestamps) / max(timeline.duration_s, 1e-6),
        notes=(),
    )


def sample_within_budget(
    total: int, fps: float, rules: VideoRules, group: int, fit: FitFrames | None = None
) -> tuple[list[int], tuple[LimitName, ...], list[str]]:
    """Returns the sampled indices of `total` frames, the limits on their number, and notes."""
    indices = sample_indices(total, fps, rules, group)
    clamp = sampling_clamp(total, fps, rules, group)
    limit_names, notes = ((clamp[0],), [clamp[1]]) if clamp else ((), [])
    if fit is None:
        return indices, limit_names, notes
    count, lowered_by, note = fit(total, len(indices))
    if not lowered_by:
        return indices, limit_names, notes
    return sample_indices(total, fps, rules, group, count), lowered_by, [note]


def _spread_over_time(
    timestamps: Sequence[int], first: int, stop: int, end: int, indices: Sequence[int]
) -> tuple[list[int], str] | None:
    """Returns the frames that are shown at even times, and a note; None if the rate is steady.

    The reference spreads frames evenly by their number. If one of `indices` is shown more than one
    sampling interval (and half of a mean frame, for rounded timestamps) off its share of the time,
    the frames that are shown at these times are taken instead: frame i at i / n of the time.
    """
    count, span, total = len(indices), end - timestamps[first], stop - first
    # Times are compared as integers: multiplied by `count`, and by 2 * `total` for half a frame.
    limit = 2 * total * span + count * span
    if all(
        2 * total * abs((timestamps[index] - timestamps[first]) * count - number * span) <= limit
        for number, index in enumerate(indices)
    ):
        return None
    shown = [
        bisect_right(timestamps, timestamps[first] + number * span // count, first, stop) - 1
        for number in range(count)
    ]
    distinct = len(set(shown))
    note = f"variable rate: {count} frames spread evenly over time"
    return shown, note if distinct == count else f"{note}, of which {distinct} differ"


def _window(
    timeline: Timeline, start_s: float | None, end_s: float | None
) -> tuple[int, int, list[str]]:
    """Returns (first, stop, notes): the frames first..stop-1 lie in the window."""
    if start_s is None and end_s is None:
        return 0, len(timeline.timestamps), []
    notes: list[str] = []
    duration, timestamps = timeline.duration_s, timeline.timestamps
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
    first = bisect_left(timestamps, start, key=timeline.seconds)
    stop = bisect_left(timestamps, end, key=timeline.seconds)
    if first == stop:
        shown = bisect_right(timestamps, max(start, 0.0), key=timeline.seconds) - 1
        notes.append(f"window lies within the frame at {timeline.seconds(timestamps[shown]):.3f} s")
        return shown, shown + 1, notes
    return first, stop, notes
