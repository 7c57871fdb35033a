"""Scene cuts of films with known cuts."""

import itertools
import tracemalloc

import numpy as np
import pytest

from benchmarks.scene_cuts import Film, embedded_world, films, score
from mediamill.model.errors import MediaError
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.scene_cuts import SceneRules, scene_cuts
from mediamill.model.media.video import decode_video
from mediamill.model.tiny.encode import clip_bytes
from mediamill.model.tiny.scenes import draw_clip
from tests import media
from tests.model.media.test_keyframes import _joined
from tests.model.media.test_video import KINDS, SMALL, drawn


def test_every_cut_of_the_embedded_world_and_no_other():
    result = score(embedded_world(0, clips=6))
    assert result.cuts == 5
    assert (result.recall, result.precision) == (1.0, 1.0)


@pytest.mark.parametrize("name", ["still", "pan", "shake", "flashes", "fades"])
def test_every_cut_of_drawn_films_and_no_other(name):
    result = score(next(film for film in films(scenes=4) if film.name == name))
    assert result.cuts == 3
    assert (result.recall, result.precision) == (1.0, 1.0)


def test_a_moving_shape_is_no_cut():
    rng = np.random.default_rng(3)
    for _ in range(3):
        assert scene_cuts(clip_bytes(draw_clip(rng, 288, 256, 48).frames)) == []


def patterns(*lengths: int) -> list[np.ndarray]:
    """Scenes of still pictures."""
    return [
        media.draw(96, 128, seed=seed) for seed, length in enumerate(lengths) for _ in range(length)
    ]


SIZES = ((96, 128), (192, 256))
CONTAINERS = {name: kind for name, kind in KINDS.items() if kind.get("codec") != "gif"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_in_every_container_at_the_seconds_of_windows(name):
    options = {"rate": 10, **CONTAINERS[name]}
    data = media.video(patterns(12, 20, 9), **options)
    cuts = scene_cuts(data, SceneRules(min_s=0.0))
    assert cuts == pytest.approx([12 / options["rate"], 32 / options["rate"]], abs=2e-3)
    # A window that begins with a cut begins with the first frame of its scene.
    for cut, index in zip(cuts, (12, 32), strict=True):
        assert decode_video(data, VideoRules(), SMALL, None, cut).indices[0] == index


def test_a_variable_rate_and_a_turn():
    timestamps = np.cumsum(np.random.default_rng(0).integers(20, 150, 60)).tolist()
    for rotation in (0, 90):
        data = media.video(patterns(20, 25, 15), timestamps=timestamps, rotation=rotation)
        times = [(timestamps[at] - timestamps[0]) / 1000 for at in (20, 45)]
        assert scene_cuts(data) == pytest.approx(times, abs=2e-3)


def test_scenes_are_not_shorter_than_asked_for():
    data = media.video(patterns(20, 3, 20, 8, 20), rate=10)
    assert scene_cuts(data, SceneRules(min_s=0.0)) == pytest.approx([2.0, 2.3, 4.3, 5.1])
    assert scene_cuts(data, SceneRules(min_s=0.5)) == pytest.approx([2.0, 4.3, 5.1])
    assert scene_cuts(data, SceneRules(min_s=1.0)) == pytest.approx([2.0, 4.3])
    assert scene_cuts(data, SceneRules(min_s=60.0)) == []


def test_a_higher_threshold_finds_less():
    film = embedded_world(0, clips=6)
    result = [
        set(scene_cuts(film.data, SceneRules(threshold))) for threshold in (0.1, 0.3, 0.5, 0.9)
    ]
    assert all(more >= less for more, less in itertools.pairwise(result))
    assert len(result[0]) > len(result[-1])


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_flash_is_no_cut_and_hides_none(frames):
    pictures = patterns(30, 30)
    for white in (255, 0):
        flashed = list(pictures)
        flashed[10 : 10 + frames] = [np.full_like(pictures[0], white)] * frames
        assert scene_cuts(media.video(flashed, rate=25)) == pytest.approx([1.2])


def test_a_fade_begins_a_scene_where_something_is_seen_again():
    pictures = patterns(40, 40)
    for step in range(12):
        for at in (40 - 1 - step, 40 + step):
            pictures[at] = (pictures[at] * (step / 12)).astype(np.uint8)
    result = scene_cuts(media.video(pictures, rate=25))
    assert result == pytest.approx([41 / 25], abs=2.1 / 25)


def test_single_frames_and_short_videos():
    assert scene_cuts(media.video(patterns(1))) == []
    assert scene_cuts(media.video(patterns(2))) == []
    assert scene_cuts(media.video(patterns(2, 2), rate=1)) == [2.0]


def test_what_is_no_video_or_damaged():
    for data, code in (
        (media.jpeg(), "decode_unsupported"),
        (media.audio_only(), "decode_unsupported"),
        (media.cut(drawn("mp4 h264")), "decode_corrupt"),
    ):
        with pytest.raises(MediaError) as caught:
            scene_cuts(data)
        assert caught.value.code == code


def test_limits():
    data = media.video(patterns(20, 20), rate=10)
    for limits in (
        MediaLimits(max_frames_decoded=39),
        MediaLimits(max_duration_s=3.8),
        MediaLimits(max_packets=39),
        MediaLimits(max_video_pixels=96 * 128 - 1),
    ):
        with pytest.raises(MediaError, match="the limit is") as caught:
            scene_cuts(data, None, limits)
        assert caught.value.code == "decode_too_large"
    assert scene_cuts(data, None, MediaLimits(max_frames_decoded=40, max_packets=40)) == [2.0]
    # A frame that grows on the way is refused by the decoder, before it takes memory.
    grown = _joined(*(media.video(media.numbered_frames(9, *size), "mpegts") for size in SIZES))
    assert len(scene_cuts(grown)) == 1
    with pytest.raises(MediaError, match="damaged after frame"):
        scene_cuts(grown, None, MediaLimits(max_video_pixels=96 * 128))


def test_memory_does_not_grow_with_the_video():
    def peak(repeats: int) -> int:
        data = media.video(patterns(*[30] * 2) * repeats, rate=25)
        tracemalloc.start()
        try:
            scene_cuts(data)
            return tracemalloc.get_traced_memory()[1] - len(data)
        finally:
            tracemalloc.stop()

    assert peak(8) < peak(2) + 200_000


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"threshold": 1.5}, {"min_s": -1.0}, {"min_s": float("nan")}]
)
def test_rules_out_of_range(wrong):
    with pytest.raises(ValueError, match="expected"):
        SceneRules(**wrong)


def test_a_score_counts_each_told_cut_once():
    """The score itself: detected cuts that are wrong, and cuts that are not detected."""
    data = media.video(patterns(20, 20), rate=10)
    assert score(Film("", data, (20,), 10)).precision == 1.0
    assert score(Film("", data, (20, 21), 10)).recall == 0.5
    assert score(Film("", data, (5,), 10)).right == 0
