"""Windows as numbers: nothing of a video is lost or seen where it is not, and nothing drifts."""

from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest

from mediamill.pipeline.annotate.windows import (
    Window,
    fixed_windows,
    given_windows,
    scene_windows,
)
from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.job_tasks import AnnotateConfig

TEN_SECONDS = AnnotateConfig(window_s=10.0)


def drawn(seed: int, count: int = 400):
    """Configs and durations with few decimals, as people write them."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        length = round(float(rng.uniform(0.1, 12)), int(rng.integers(0, 3))) or 1.0
        overlap = round(float(rng.uniform(0, length)) * int(rng.integers(0, 2)), 2)
        least = round(float(rng.uniform(0, 2)), 1)
        overlap = min(overlap, length * 0.9)
        config = AnnotateConfig(window_s=length, overlap_s=overlap, min_s=least)
        yield config, round(float(rng.uniform(0, 5000 * length)) ** float(rng.uniform(0.2, 1)), 3)


def test_fixed_windows_cover_all_in_exact_steps():
    for config, duration in drawn(1):
        windows = fixed_windows(config, 0.0, duration)
        length, overlap = Decimal(str(config.window_s)), Decimal(str(config.overlap_s))
        assert windows[0].start_s == 0
        assert windows[-1].end_s == duration
        for number, window in enumerate(windows):
            # The oracle counts in decimals: a sum of steps would drift.
            assert window.start_s == float(number * (length - overlap))
            if number < len(windows) - 1:
                assert window.end_s == float(number * (length - overlap) + length)
                assert window.end_s < duration
        for one, other in pairwise(windows):
            assert other.start_s <= one.end_s
            if not config.overlap_s:
                assert other.start_s == one.end_s  # the same float: no frame in both or in none
        last = windows[-1]
        if len(windows) > 1:
            least = min(Decimal(str(config.min_s)), length)
            assert Decimal(str(duration)) - Decimal(str(last.start_s)) >= least
        # Nothing is joined that is long enough.
        assert last.end_s - last.start_s < config.window_s + max(config.min_s, 0) + 1e-6


def test_no_window_is_only_a_part_of_the_one_before():
    assert fixed_windows(AnnotateConfig(window_s=10.0, overlap_s=5.0), 0.0, 20.0) == [
        (0, 10),
        (5, 15),
        (10, 20),
    ]
    assert fixed_windows(TEN_SECONDS, 0.0, 20.0) == [(0, 10), (10, 20)]
    assert fixed_windows(TEN_SECONDS, 0.0, 20.5) == [(0, 10), (10, 20.5)]
    assert fixed_windows(TEN_SECONDS, 0.0, 21.0) == [(0, 10), (10, 20), (20, 21)]
    assert fixed_windows(TEN_SECONDS, 0.0, 0.3) == [(0, 0.3)]
    assert fixed_windows(TEN_SECONDS, 3.0, 14.0) == [(3, 13), (13, 14)]


def test_a_tenth_of_a_second_does_not_drift_in_a_day():
    config = AnnotateConfig(window_s=0.1, overlap_s=0.0, min_s=0.0, max_windows=10**6)
    windows = fixed_windows(config, 0.0, 86400.0)
    assert len(windows) == 864_000
    assert windows[863_999] == (86399.9, 86400.0)


def test_too_many_windows_are_an_error_before_they_take_memory():
    with pytest.raises(RowError, match=r"annotate\.max_windows = 1000") as caught:
        fixed_windows(AnnotateConfig(window_s=1e-6, max_windows=1000), 0.0, 1e9)
    assert caught.value.code == ErrorCode.DECODE_TOO_LARGE
    with pytest.raises(RowError, match="max_windows"):
        scene_windows(AnnotateConfig(max_scene_s=1e-9, max_windows=1000), 0.0, 1e6, [])
    with pytest.raises(RowError, match="max_windows"):
        given_windows(AnnotateConfig(max_windows=2), [0, 1, 2], [1, 2, 3])


def test_scenes_partition_the_video_and_obey_their_lengths():
    rng = np.random.default_rng(2)
    for _ in range(300):
        duration = float(rng.uniform(0.5, 300))
        cuts = sorted(float(cut) for cut in rng.uniform(0, duration, int(rng.integers(0, 60))))
        least, most = float(rng.uniform(0, 3)), float(rng.uniform(6.5, 20))
        found = scene_windows(AnnotateConfig(min_s=least, max_scene_s=most), 0.0, duration, cuts)
        assert found[0].start_s == 0
        assert found[-1].end_s == duration
        assert all(one.end_s == other.start_s for one, other in pairwise(found))
        for start, end in found:
            assert start < end <= start + most + 1e-9
            assert len(found) == 1 or end - start >= least - 1e-9
        # Whatever begins a window is a cut, or divides a long scene evenly.
        whole = scene_windows(AnnotateConfig(min_s=least), 0.0, duration, cuts)
        assert {one.start_s for one in whole} <= {0.0, *cuts}
        assert {one.start_s for one in whole} <= {one.start_s for one in found}


def test_short_scenes_join_the_one_before_and_the_first_the_one_behind():
    config = AnnotateConfig(min_s=1.0)
    assert scene_windows(config, 0.0, 10.0, [0.4, 3.0, 3.5, 9.5]) == [(0, 3), (3, 10)]
    assert scene_windows(config, 0.0, 0.5, [0.2]) == [(0, 0.5)]
    assert scene_windows(AnnotateConfig(max_scene_s=4.0), 0.0, 10.0, [1.0]) == [
        (0, 1),
        (1, 4),
        (4, 7),
        (7, 10),
    ]


def test_given_windows_stay_as_they_are():
    assert given_windows(AnnotateConfig(), 1, 2.5) == [Window(1.0, 2.5)]
    assert given_windows(AnnotateConfig(), [5.0, 0.0], [6.0, 1.0]) == [(5, 6), (0, 1)]


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [
        (None, 1.0, "null in column start_s"),
        (0.0, float("inf"), "inf in column end_s"),
        ([0.0, None], [1.0, 2.0], "null in column start_s"),
        ([0.0, 1.0], [1.0], "2 values of start_s and 1 of end_s"),
        ([], [], "found no window"),
        (2.0, 1.0, "2 s to 1 s"),
        (1.0, 1.0, "1 s to 1 s"),
        (-1.0, 1.0, "-1 s to 1 s"),
        (float("nan"), 1.0, "nan in column start_s"),
    ],
)
def test_what_are_no_windows_is_an_error_with_a_sentence(starts, ends, message):
    with pytest.raises(RowError, match=message) as caught:
        given_windows(AnnotateConfig(), starts, ends)
    assert caught.value.code == ErrorCode.PROMPT_INVALID
