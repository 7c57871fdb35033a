"""Divides a video into windows: of a fixed length, from scene cut to scene cut, or given by a row.

Times are seconds from the first frame of the video. All functions raise RowError decode_too_large
for more windows than `annotate.max_windows`.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.job_tasks import AnnotateConfig


class Window(NamedTuple):
    """From start_s up to, and without, end_s."""

    start_s: float
    end_s: float


def fixed_windows(config: AnnotateConfig, start_s: float, end_s: float) -> list[Window]:
    """Returns windows of equal length over [start_s, end_s); the last one ends at end_s.

    Window i begins at start_s + i * (window_s - overlap_s), computed without rounding from the
    decimal numbers of the job. No window begins where the one before has reached the end.
    """
    seconds = (start_s, end_s, config.window_s, config.overlap_s, config.min_s)
    fractions = [_exact(number) for number in seconds]
    unit = math.lcm(*(fraction.denominator for fraction in fractions))
    first, end, length, overlap, shortest = (int(fraction * unit) for fraction in fractions)
    step = length - overlap
    count = max(1, 1 - (first + length - end) // step)
    # A last window that is too short joins the one before; one of full length never does.
    if count > 1 and end - (first + (count - 1) * step) < min(shortest, length):
        count -= 1
    _check_count(config, count)
    starts = (first + number * step for number in range(count))
    # The quotient of two integers is rounded once, to the nearest float.
    windows = [Window(start / unit, (start + length) / unit) for start in starts]
    windows[-1] = Window(windows[-1].start_s, end_s)
    return windows


def scene_windows(
    config: AnnotateConfig, start_s: float, end_s: float, cuts: Sequence[float]
) -> list[Window]:
    """Returns windows from cut to cut within [start_s, end_s).

    A scene shorter than min_s joins the one before, and the first joins the next; one longer than
    max_scene_s is divided evenly.
    """
    starts = [start_s]
    for cut in sorted(cuts):
        if start_s < cut < end_s and cut - starts[-1] >= config.min_s:
            starts.append(cut)
    if len(starts) > 1 and end_s - starts[-1] < config.min_s:
        starts.pop()
    windows: list[Window] = []
    for start, end in pairwise([*starts, end_s]):
        parts = 1
        if config.max_scene_s is not None:
            parts = max(1, math.ceil((_exact(end) - _exact(start)) / _exact(config.max_scene_s)))
        _check_count(config, len(windows) + parts)
        step = (_exact(end) - _exact(start)) / parts
        edges = [start, *(float(_exact(start) + n * step) for n in range(1, parts)), end]
        windows += [Window(*edge) for edge in pairwise(edges)]
    return windows


def given_windows(config: AnnotateConfig, starts: object, ends: object) -> list[Window]:
    """Returns the windows that a row names, in its order.

    starts, ends: the values of its columns start_s and end_s, a number each or a list of numbers
    each. Raises RowError prompt_invalid for values that are not windows.
    """
    start_numbers, end_numbers = _numbers("start_s", starts), _numbers("end_s", ends)
    if len(start_numbers) != len(end_numbers):
        raise _invalid(
            f"found {len(start_numbers)} values of start_s and {len(end_numbers)} of end_s, "
            "expected one end for each start"
        )
    if not start_numbers:
        raise _invalid("found no window in start_s and end_s, expected at least one")
    windows = [Window(*edge) for edge in zip(start_numbers, end_numbers, strict=True)]
    for start, end in windows:
        if start < 0 or end <= start:
            raise _invalid(
                f"found the window {start:g} s to {end:g} s, expected 0 <= start_s < end_s"
            )
    _check_count(config, len(windows))
    return windows


def _check_count(config: AnnotateConfig, count: int) -> None:
    if count > config.max_windows:
        raise RowError(
            ErrorCode.DECODE_TOO_LARGE,
            f"the video makes at least {count} windows, expected at most "
            f"annotate.max_windows = {config.max_windows}",
        )


def _exact(seconds: float) -> Fraction:
    """Returns the decimal number as it is written: 0.1 is a tenth."""
    return Fraction(repr(float(seconds)))


def _numbers(column: str, values: object) -> list[float]:
    numbers: list[float] = []
    for value in values if isinstance(values, list) else [values]:
        if not isinstance(value, int | float) or not math.isfinite(value):
            shown = "null" if value is None else str(value)
            raise _invalid(f"found {shown} in column {column}, expected seconds")
        numbers.append(float(value))
    return numbers


def _invalid(message: str) -> RowError:
    return RowError(ErrorCode.PROMPT_INVALID, message)
