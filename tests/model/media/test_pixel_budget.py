"""Limits on all frames of a video together: they fit, as large and as many as the limits allow."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mediamill.model.errors import PromptError
from mediamill.model.media.display import Display
from mediamill.model.media.frame_sampling import VideoRules, sample_indices
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.limit_names import LIMIT_NAMES
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.pixel_budget import PixelBudget, Size
from mediamill.model.media.prepared import prepare_frames, prepare_picture, prepare_video
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.media.timeline import sample_within_budget
from mediamill.model.media.video import decode_video
from mediamill.model.processor import Processor
from mediamill.model.tiny import CHECKPOINT
from tests import media

PIXELS = ImageRules(min_pixels=3136, max_pixels=200_704)

rules_of = st.builds(
    VideoRules,
    fps=st.floats(0.1, 30),
    min_frames=st.none() | st.integers(1, 12),
    max_frames=st.none() | st.integers(12, 800),
    total_pixels=st.none() | st.integers(784, 40_000_000),
    max_tokens=st.none() | st.integers(1, 50_000),
)
limits_of = st.builds(MediaLimits, max_visual_tokens=st.none() | st.integers(8, 32_768))
sizes = st.tuples(st.integers(16, 2200), st.integers(16, 2200))
pixel_rules = st.builds(
    lambda low, more: ImageRules(min_pixels=low, max_pixels=low + more),
    st.integers(784, 100_000),
    st.integers(0, 1_000_000),
)


def fitted(
    total: int,
    rate: float,
    source: Size,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits,
) -> tuple[list[int], Size, tuple[str, ...]]:
    budget = PixelBudget(rules, pixels, limits)
    fit = functools.partial(budget.fit_frames, source) if budget.adapts else None
    indices, bounds, _ = sample_within_budget(total, rate, rules, pixels.temporal_patch_size, fit)
    resized = budget.frame_size(source, len(indices))
    return indices, resized.size, (*bounds, *resized.bound_by)


@settings(max_examples=800, deadline=None)
@given(st.integers(1, 20_000), st.floats(1, 60), sizes, rules_of, pixel_rules, limits_of)
def test_no_limit_is_ever_passed(total, rate, source, rules, pixels, limits):
    assume(max(source) <= 20 * min(source))
    try:
        indices, (height, width), bounds = fitted(total, rate, source, rules, pixels, limits)
    except PromptError:
        return
    count = len(indices)
    free = VideoRules(rules.fps, None, rules.min_frames, rules.max_frames)
    wanted = sample_indices(total, rate, free)
    tokens = pixels.tokens_of((height, width), count)
    assert count <= len(wanted)
    assert indices == sorted(set(indices))
    assert count % 2 == 0 or total == 1
    assert count >= min(len(wanted), rules.min_frames or 4) // 2 * 2 or total == 1
    assert height % 28 == width % 28 == 0
    assert rules.total_pixels is None or count * height * width <= rules.total_pixels
    assert rules.max_tokens is None or tokens <= rules.max_tokens
    assert limits.max_visual_tokens is None or tokens <= limits.max_visual_tokens
    assert set(bounds) <= set(LIMIT_NAMES)
    alone = pixels.size_of(*source)
    lowered = {"total_pixels", "max_tokens", "context"} & set(bounds)
    assert bool(lowered) == ((count, (height, width)) != (len(wanted), alone))
    if lowered:
        assert height * width >= min(pixels.min_pixels, alone[0] * alone[1])
    # Frames are only left out where they are as small as they may be.
    if count < len(wanted):
        assert "min_pixels" in bounds
        more = PixelBudget(rules, pixels, limits)
        with pytest.raises(PromptError):
            more.frame_size(source, count + 2)


@settings(max_examples=400, deadline=None)
@given(sizes, st.integers(2, 400), rules_of, limits_of, st.floats(1, 4))
def test_a_larger_budget_never_gives_less(source, total, rules, limits, factor):
    assume(max(source) <= 20 * min(source))
    assume(rules.total_pixels or rules.max_tokens)
    larger = VideoRules(
        rules.fps,
        None,
        rules.min_frames,
        rules.max_frames,
        total_pixels=rules.total_pixels and int(rules.total_pixels * factor),
        max_tokens=rules.max_tokens and int(rules.max_tokens * factor),
    )
    try:
        few, small, _ = fitted(total, 10.0, source, rules, PIXELS, limits)
    except PromptError:
        return
    many, large, _ = fitted(total, 10.0, source, larger, PIXELS, limits)
    assert len(many) >= len(few)
    if len(many) == len(few):
        assert large[0] * large[1] >= small[0] * small[1]


def test_an_error_says_what_is_too_much():
    rules = VideoRules(fps=2.0, max_tokens=3)
    with pytest.raises(PromptError, match=r"4 frames of 84 x 56 .* max_tokens 3:") as caught:
        fitted(100, 10.0, (64, 96), rules, PIXELS, MediaLimits())
    assert caught.value.code == "context_too_long"
    with pytest.raises(PromptError, match=r"the limit is context 3"):
        fitted(100, 10.0, (64, 96), VideoRules(total_pixels=10**9), PIXELS, MediaLimits(
            max_visual_tokens=3
        ))  # fmt: skip


# --- files

FRAMES = 60
FILE = media.video(media.numbered_frames(FRAMES, 240, 320), rate=10, options={"g": "12"})


def prepared(data: bytes = FILE, window=(None, None), **rules: object):
    limits = MediaLimits(max_visual_tokens=rules.pop("context", None))
    return prepare_video(data, VideoRules(**rules), PIXELS, limits, *window)


@pytest.mark.parametrize(
    ("rules", "bounds"),
    [
        ({"fps": 2.0}, ()),
        ({"fps": 2.0, "total_pixels": 10**9, "max_tokens": 10**6, "context": 10**6}, ()),
        ({"fps": 2.0, "max_frames": 8}, ("max_frames",)),
        ({"fps": 0.2}, ("min_frames",)),
        ({"fps": 100.0}, ("frames",)),
        ({"num_frames": 7}, ("num_frames",)),
        ({"num_frames": 70}, ("frames",)),
        ({"fps": 2.0, "max_pixels": 40_000}, ("max_pixels",)),
        ({"fps": 2.0, "min_pixels": 150_000}, ("min_pixels",)),
        ({"fps": 2.0, "total_pixels": 12 * 30_000}, ("total_pixels",)),
        ({"fps": 2.0, "max_tokens": 6 * 50}, ("max_tokens",)),
        ({"fps": 2.0, "max_tokens": 10**6, "context": 6 * 50}, ("context",)),
        ({"fps": 2.0, "max_tokens": 12}, ("min_pixels", "max_tokens")),
        ({"fps": 2.0, "max_frames": 8, "max_tokens": 80}, ("max_frames", "max_tokens")),
        ({"fps": 2.0, "cap_pixels_per_frame": True, "max_video_tokens": 300},
         ("max_video_tokens",)),
    ],
)  # fmt: skip
def test_the_receipt_names_the_limits(rules, bounds):
    visual, receipt = prepared(**rules)
    assert receipt.bound_by == bounds
    assert bool(receipt.notes) == bool(bounds)
    assert receipt.visual_tokens == visual.tokens


def test_windows_that_are_cut_say_so():
    assert prepared(window=(1.0, 3.0))[1].bound_by == ()
    assert prepared(window=(5.0, 9.0))[1].bound_by == ("window", "min_frames")
    assert prepared(window=(1.02, 1.08))[1].bound_by == ("window", "frames")


def test_pictures_name_their_limits():
    picture = media.jpeg(300, 400)
    bounds = [
        prepare_picture(picture, ImageRules(min_pixels=low, max_pixels=high), MediaLimits())[1]
        for low, high in ((3136, 10**6), (3136, 50_000), (500_000, 10**6))
    ]
    assert [receipt.bound_by for receipt in bounds] == [(), ("max_pixels",), ("min_pixels",)]


def test_limits_that_are_not_reached_change_no_bit():
    plain, receipt = prepared(fps=2.0)
    tokens = receipt.visual_tokens
    pixels = len(receipt.frame_indices) * receipt.height * receipt.width
    same, other = prepared(fps=2.0, max_tokens=tokens, total_pixels=pixels, context=tokens)
    assert other == receipt
    assert torch.equal(same.patches, plain.patches)
    assert prepared(fps=2.0, max_tokens=tokens - 1)[1].visual_tokens < tokens
    assert prepared(fps=2.0, total_pixels=pixels - 1)[1].visual_tokens < tokens


def test_fewer_frames_are_spread_over_the_window():
    _, receipt = prepared(fps=5.0, min_pixels=3136, max_tokens=24)
    assert receipt.frame_indices == tuple(sample_indices(FRAMES, 10.0, VideoRules(num_frames=12)))
    assert receipt.visual_tokens == 24


def test_turned_frames_and_decoded_ones_fit_as_well():
    frames = media.numbered_frames(20, 240, 320)
    turned = media.video(frames, rate=10, rotation=90)
    for source, (visual, receipt) in (
        ("turned", prepared(turned, fps=5.0, max_tokens=100)),
        ("decoded", prepare_frames(
            np.stack(frames), 10.0, VideoRules(fps=5.0, max_tokens=100), PIXELS, MediaLimits()
        )),
    ):  # fmt: skip
        assert visual.tokens <= 100, source
        assert receipt.bound_by == ("max_tokens",)


class _WrongHeader(ProbeCache):
    """The header declares another size than that of the frames."""

    def scan_packets(self, *arguments):
        display = Display.of((1080, 1920), None)
        return dataclasses.replace(super().scan_packets(*arguments), display=display)


@pytest.mark.parametrize("rules", [{"fps": 5.0, "max_tokens": 100, "min_pixels": 20_000}, {}])
def test_frames_of_another_size_than_the_header_declares(rules):
    right = decode_video(FILE, VideoRules(**rules), PIXELS)
    video = decode_video(FILE, VideoRules(**rules), PIXELS, probe_cache=_WrongHeader())
    assert torch.equal(video.frames, right.frames)
    assert (video.indices, video.bound_by) == (right.indices, right.bound_by)


def test_a_processor_counts_the_tokens_before_decoding():
    processor = Processor.load(CHECKPOINT, video=VideoRules(fps=2.0, max_tokens=20))
    visual, receipt = processor.prepare_media(FILE)
    count = len(receipt.frame_indices)
    assert processor.video_tokens(count, 240, 320) == visual.tokens <= 20
    assert "max_tokens" in receipt.bound_by
