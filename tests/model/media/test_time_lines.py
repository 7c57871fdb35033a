"""Time lines that begin anew or jump go on; frames are spread over time where the rate varies."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from mediamill.model.media.duration import duration_s
from mediamill.model.media.frame_sampling import VideoRules, sample_indices
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.scene_cuts import scene_cuts
from mediamill.model.media.timeline import Timeline, select_frames
from mediamill.model.media.video import Video, decode_video
from tests import media, videos

PIXELS = ImageRules(min_pixels=28 * 28, max_pixels=28 * 28 * 4)
ALL = VideoRules(do_sample_frames=False)
WRAP_S = 2**33 / 90_000
LONG = media.numbered_frames(30, 48, 64)
SHORT = media.numbered_frames(20, 48, 64, seed=3)
JOINED = {
    "ts h264": {"form": "mpegts", "options": {"g": "10"}},
    "ts h264 no B-frames": {"form": "mpegts", "options": {"g": "10", "bf": "0"}},
    "ts h265": {"form": "mpegts", "codec": "libx265", "options": videos.X265_QUIET},
    "ts mpeg2": {"form": "mpegts", "codec": "mpeg2video", "options": {"bf": "2", "g": "8"}},
    "ps mpeg1": {"form": "mpeg", "codec": "mpeg1video"},
    "ps mpeg2": {"form": "mpeg", "codec": "mpeg2video", "options": {"g": "8"}},
    "vob": {"form": "vob", "codec": "mpeg2video", "options": {"bf": "0", "g": "8"}},
}


def shown(data: bytes, rules: VideoRules = ALL, **window: float) -> Video:
    return decode_video(data, rules, PIXELS, **window)


def drawn(kind: str, frames: list[np.ndarray]) -> bytes:
    return videos.encoded(frames, rate=25, **JOINED[kind])


def assert_even(video: Video, count: int) -> None:
    """All frames, in steps of 1/25 s."""
    assert video.total_frames == count
    assert video.times_s == pytest.approx([index / 25 for index in range(count)], abs=1e-3)


@pytest.mark.parametrize("kind", JOINED)
@pytest.mark.parametrize("parts", [2, 3])
def test_joined_files_are_one_video(kind, parts):
    first, second = drawn(kind, LONG), drawn(kind, SHORT)
    data = first + second + (first if parts == 3 else b"")
    count = 50 + 30 * (parts == 3)
    video = shown(data)
    assert_even(video, count)
    assert "begins anew" in video.notes[0]
    assert "1.200 s" in video.notes[0]
    assert duration_s(data) == pytest.approx(count / 25, abs=1e-3)
    alone = shown(second)
    assert torch.equal(video.frames[32:50], alone.frames[2:])


@pytest.mark.parametrize("kind", ["ts h264", "ps mpeg1"])
def test_windows_of_joined_files(kind):
    data = drawn(kind, LONG) + drawn(kind, SHORT) + drawn(kind, LONG)
    everything = shown(data)
    for start, end in [(0, 0.4), (1.0, 1.6), (1.2, 2.0), (2.4, 3.2)]:
        window = shown(data, start_s=start, end_s=end)
        first, stop = round(start * 25), round(end * 25)
        assert window.indices == tuple(range(first, stop))
        assert torch.equal(window.frames, everything.frames[first:stop])
        few = shown(data, VideoRules(num_frames=4), start_s=start, end_s=end)
        for index, frame in zip(few.indices, few.frames, strict=True):
            assert torch.equal(frame, everything.frames[index])


def test_scene_cuts_of_joined_files():
    dark, light = [np.full((48, 64, 3), 20, np.uint8)] * 50, [np.full((48, 64, 3), 220, np.uint8)]
    data = drawn("ts h264", dark) + drawn("ts h264", light * 50)
    assert scene_cuts(data) == pytest.approx([2.0], abs=1e-3)


@pytest.mark.parametrize("start_s", [0, 50_000, WRAP_S - 0.5, WRAP_S - 1.2, WRAP_S - 61])
@pytest.mark.parametrize("joined", ["alone", "then from zero", "after from zero"])
def test_counters_that_wrap(start_s, joined):
    part = drawn("ts h264", LONG)
    late = videos.remuxed(part, "mpegts", lambda _: start_s)
    data = {"alone": late, "then from zero": late + part, "after from zero": part + late}[joined]
    assert_even(shown(data), 30 if joined == "alone" else 60)


@pytest.mark.parametrize("gap_s", [12, 3600, 50_000, -1, -3600])
def test_jumps_within_a_transport_stream_are_carried_on(gap_s):
    late = videos.remuxed(drawn("ts h264", LONG), "mpegts", lambda _: 7200)
    offset = 7200 + gap_s
    data = late + videos.remuxed(drawn("ts h264", LONG), "mpegts", lambda _: offset)
    video = shown(data)
    assert_even(video, 60)
    assert "begins anew once" in video.notes[0]


@pytest.mark.parametrize("form", ["matroska", "mpegts", "mp4", "flv"])
def test_a_pause_is_kept(form):
    base = videos.encoded(LONG, "matroska", rate=25, options={"bf": "0"})
    data = videos.remuxed(base, form, lambda number: 5.0 * (number >= 15))
    video = shown(data)
    assert video.times_s[15] - video.times_s[14] == pytest.approx(5.04, abs=2e-3)
    assert not video.notes


@pytest.mark.parametrize("form", ["matroska", "mp4"])
def test_a_long_pause_is_kept_where_times_do_not_jump(form):
    base = videos.encoded(LONG, "matroska", rate=25, options={"bf": "0"})
    data = videos.remuxed(base, form, lambda number: 3600.0 * (number >= 15))
    assert shown(data).times_s[-1] == pytest.approx(3601.16, abs=2e-3)


def test_other_programs_numbers_of_a_joined_stream():
    first = videos.encoded(LONG, "mpegts", rate=25)
    second = videos.encoded(
        LONG, "mpegts", rate=25, container_options={"mpegts_start_pid": "0x200"}
    )
    assert shown(first + second).total_frames == 60


# --- variable rates


def timeline(times: list[int], end: int) -> Timeline:
    return Timeline.build(times, end, Fraction(1, 1000), 25.0)


def test_frames_are_spread_over_time_where_the_rate_varies():
    # 60 frames in two seconds, then one every two seconds up to 62 s.
    times = [round(1000 * index / 30) for index in range(60)] + list(range(2000, 62_000, 2000))
    selection = select_frames(timeline(times, 62_000), VideoRules(num_frames=64), None, None)
    assert len(selection.indices) == 64
    assert sum(time < 2 for time in selection.times_s) <= 4
    for number, time in enumerate(selection.times_s):
        assert 0 <= number * 62 / 64 - time <= 2.0
    assert "variable rate" in selection.notes[-1]


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("jitter", [0, 1, 3])
@pytest.mark.parametrize("count", [2, 4, 32, 100, 498])
def test_a_steady_rate_keeps_the_indices_of_the_reference(start, jitter, count):
    rng = np.random.default_rng(count)
    times = [start + round(index * 1001 / 24) + int(rng.integers(0, jitter + 1)) // 2
             for index in range(500)]  # fmt: skip
    rules = VideoRules(num_frames=count)
    selection = select_frames(timeline(times, times[-1] + 41), rules, None, None)
    assert list(selection.indices) == sample_indices(500, 24.0, rules)
    assert not [note for note in selection.notes if "variable" in note]


def test_a_window_of_a_variable_rate():
    times = [*range(0, 1000, 40), *range(1000, 20_000, 1000)]
    rules = VideoRules(num_frames=10)
    selection = select_frames(timeline(times, 20_000), rules, 0.5, 10.0)
    assert all(0.48 <= time < 10 for time in selection.times_s)
    assert len(set(selection.times_s)) >= 8


def test_all_frames_are_used_where_all_are_asked_for():
    times = [0, 10, 20, 30, 5000, 10_000]
    selection = select_frames(timeline(times, 10_040), VideoRules(fps=2.0), None, None)
    assert selection.indices == (0, 1, 2, 3, 4, 5)


def test_decoded_frames_of_a_variable_rate():
    times = [0, 40, 80, 120, 160, 200, 240, 280, 1000, 2000, 3000, 4000]
    data = media.video(media.numbered_frames(12), timestamps=times)
    video = shown(data, VideoRules(num_frames=4))
    assert video.times_s == pytest.approx((0, 1, 2, 3), abs=2e-3)
    everything = shown(data)
    assert torch.equal(video.frames, everything.frames[[0, 8, 9, 10]])
    assert duration_s(data) >= 4.0
