"""Turns how long a video lasts, where its scenes change, or what a row says, into windows.

Knows numbers only: neither files nor rows. Times are seconds from the first frame of the video.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal, NamedTuple

from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.job import JobConfig

Kind = Literal["fixed", "scenes", "given"]


class Window(NamedTuple):
    """From start_s up to, and without, end_s."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class WindowRules:
    """What the job says of windows; see its keys `annotate.*`.

    scene_threshold: None = the detector's own. max_scene_s: None = scenes stay as long as they are.
    """

    kind: Kind = "fixed"
    window_s: float = 10.0
    overlap_s: float = 0.0
    min_s: float = 1.0
    scene_threshold: float | None = None
    max_scene_s: float | None = None
    max_windows: int = 100_000

    @classmethod
    def of(cls, job: JobConfig) -> "WindowRules":
        """What `job` says."""
        said = job.annotate
        return cls(
            said.windows,
            said.window_s,
            said.overlap_s,
            said.min_s,
            said.scene_threshold,
            said.max_scene_s,
            said.max_windows,
        )

    @property
    def needs_media(self) -> bool:
        """Whether the video itself has to be looked at."""
        return self.kind != "given"

    def fixed(self, start_s: float, end_s: float) -> list[Window]:
        """Windows of equal length over [start_s, end_s); the last one ends with it.

        Window i begins at start_s + i * (window_s - overlap_s), computed without rounding from the
        decimal numbers that the job has. No window begins where the one before has reached the end.
        Raises RowError, decode_too_large, for more than max_windows.
        """
        said = (start_s, end_s, self.window_s, self.overlap_s, self.min_s)
        numbers = [_exact(seconds) for seconds in said]
        unit = math.lcm(*(one.denominator for one in numbers))
        first, end, length, overlap, least = (int(one * unit) for one in numbers)
        step = length - overlap
        count = max(1, 1 - (first + length - end) // step)
        # A last one that is too short joins the one before; one of the whole length never is.
        if count > 1 and end - (first + (count - 1) * step) < min(least, length):
            count -= 1
        self._check_count(count)
        starts = (first + number * step for number in range(count))
        # Of whole numbers, a quotient is the nearest float that there is.
        windows = [Window(start / unit, (start + length) / unit) for start in starts]
        windows[-1] = Window(windows[-1].start_s, end_s)
        return windows

    def scenes(self, start_s: float, end_s: float, cuts: Sequence[float]) -> list[Window]:
        """Windows from cut to cut within [start_s, end_s).

        Scenes shorter than min_s join the one before, the first one the one behind; those longer
        than max_scene_s are cut evenly. Raises RowError, decode_too_large, for more than
        max_windows.
        """
        kept = [start_s]
        for cut in sorted(cuts):
            if start_s < cut < end_s and cut - kept[-1] >= self.min_s:
                kept.append(cut)
        if len(kept) > 1 and end_s - kept[-1] < self.min_s:
            kept.pop()
        windows: list[Window] = []
        for start, end in pairwise([*kept, end_s]):
            parts = 1
            if self.max_scene_s is not None:
                parts = max(1, math.ceil((_exact(end) - _exact(start)) / _exact(self.max_scene_s)))
            self._check_count(len(windows) + parts)
            step = (_exact(end) - _exact(start)) / parts
            edges = [start, *(float(_exact(start) + n * step) for n in range(1, parts)), end]
            windows += [Window(*edge) for edge in pairwise(edges)]
        return windows

    def given(self, starts: object, ends: object) -> list[Window]:
        """The windows that a row names, in its order.

        starts, ends: the values of its columns start_s and end_s: a number each, or a list of
        numbers each. Raises RowError, prompt_invalid, for what are no windows.
        """
        begin, finish = _numbers("start_s", starts), _numbers("end_s", ends)
        if len(begin) != len(finish):
            raise _wrong(
                f"found {len(begin)} values of start_s and {len(finish)} of end_s, expected one "
                "end for each start"
            )
        if not begin:
            raise _wrong("found no window in start_s and end_s, expected at least one")
        for start, end in zip(begin, finish, strict=True):
            if start < 0 or end <= start:
                raise _wrong(
                    f"found the window {start:g} s to {end:g} s, expected 0 <= start_s < end_s"
                )
        self._check_count(len(begin))
        return [Window(*edge) for edge in zip(begin, finish, strict=True)]

    def _check_count(self, count: int) -> None:
        if count > self.max_windows:
            raise RowError(
                ErrorCode.DECODE_TOO_LARGE,
                f"the video makes at least {count} windows, expected at most "
                f"annotate.max_windows = {self.max_windows}",
            )


def _exact(seconds: float) -> Fraction:
    """The decimal number that is written: 0.1 is a tenth."""
    return Fraction(repr(float(seconds)))


def _numbers(name: str, found: object) -> list[float]:
    numbers: list[float] = []
    for value in found if isinstance(found, list) else [found]:
        if not isinstance(value, int | float) or not math.isfinite(value):
            shown = "null" if value is None else str(value)
            raise _wrong(f"found {shown} in column {name}, expected seconds")
        numbers.append(float(value))
    return numbers


def _wrong(what: str) -> RowError:
    return RowError(ErrorCode.PROMPT_INVALID, what)
