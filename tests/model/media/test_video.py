"""Videos: the sampled frames are the right ones, bit for bit; undecodable files are errors."""

import contextlib
import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mediamill.model.errors import MediaError, PromptError
from mediamill.model.media.frame_sampling import VideoRules, sample_indices, sampling_clamp
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.patches import normalize, patchify_video
from mediamill.model.media.resize import resize, smart_resize
from mediamill.model.media.scene_cuts import scene_cuts
from mediamill.model.media.video import Video, decode_video
from tests import media, oracle

SMALL = ImageRules(min_pixels=3136, max_pixels=10_000)
COUNT, RATE = 17, 10

KINDS = {
    "mp4 h264": {},
    "mp4 h264 index first": {"container_options": {"movflags": "faststart"}},
    "mp4 h264 fragmented": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mp4 h264 many B-frames": {"options": {"bf": "6", "g": "30"}},
    # With its lookahead or B-frames, this encoder writes beyond its memory now and then.
    "mp4 h265": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:bframes=0:rc-lookahead=0"},
    },
    "mov h264": {"form": "mov"},
    "mkv h264": {"form": "matroska"},
    "webm vp9": {"form": "webm", "codec": "libvpx-vp9"},
    "avi mpeg4": {"form": "avi", "codec": "mpeg4"},
    "avi mpeg4 B-frames": {"form": "avi", "codec": "mpeg4", "options": {"bf": "2"}},
    "avi h264 B-frames": {"form": "avi"},
    "mpeg-ts h264": {"form": "mpegts"},
    "mpeg-ps mpeg2": {"form": "mpeg", "codec": "mpeg2video", "rate": 25},
    "flv": {"form": "flv", "codec": "flv"},
    "wmv": {"form": "asf", "codec": "wmv2"},
    "gif": {"form": "gif", "codec": "gif", "pixel_format": "rgb8"},
}
TOLD_LENGTH = [name for name in KINDS if not name.startswith(("mpeg-", "flv", "wmv"))]


@functools.cache
def drawn(kind: str, count: int = COUNT) -> bytes:
    return media.video(media.numbered_frames(count), **{"rate": RATE, **KINDS[kind]})


def decoded(data: bytes, rules: VideoRules | None = None, **window: float) -> Video:
    return decode_video(data, rules or VideoRules(), SMALL, **window)


def assert_frames(video: Video, data: bytes, turns: int = 0) -> None:
    """The selected frames are those of a plain decode at the same indices, resized."""
    everything = media.all_frames(data)
    expected = torch.stack(
        [
            torch.from_numpy(np.rot90(everything[i], turns).transpose(2, 0, 1).copy())
            for i in video.indices
        ]
    )
    times = sorted(media.all_times(data))  # AVI tells some in the order of decoding
    assert video.times_s == pytest.approx([times[i] for i in video.indices], abs=1e-6)
    size = smart_resize(*expected.shape[2:], 28, SMALL.min_pixels, SMALL.max_pixels)
    assert torch.equal(video.frames, resize(expected, *size))


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_frames_of_every_container(kind):
    data = drawn(kind)
    rate = KINDS[kind].get("rate", RATE)
    video = decoded(data, VideoRules(fps=rate / 2))
    assert video.total_frames == COUNT
    assert video.fps == pytest.approx(rate, rel=1e-3)
    assert video.indices == (0, 2, 4, 6, 8, 10, 12, 14)
    assert video.times_s == pytest.approx([i / rate for i in video.indices], abs=1e-3)
    assert (video.source_height, video.source_width) == (64, 96)
    assert_frames(video, data)


@pytest.mark.parametrize("kind", KINDS)
def test_all_frames_can_be_asked_for(kind):
    data = drawn(kind)
    video = decoded(data, VideoRules(num_frames=COUNT + 1))
    assert video.indices == tuple(sample_indices(COUNT, RATE, VideoRules(num_frames=16)))
    assert "16 frames instead of num_frames 18" in video.notes[0]
    assert_frames(video, data)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_short_videos(count):
    data = drawn("mp4 h264", count)
    video = decoded(data)
    assert len(video.indices) == (1 if count == 1 else count // 2 * 2)
    assert video.fps == pytest.approx(RATE)
    assert_frames(video, data)


def test_the_reference_gives_the_same_patches_for_the_same_file():
    data = drawn("mp4 h264", 43)
    frames = np.stack(media.all_frames(data)).transpose(0, 3, 1, 2)
    processor = oracle.Qwen2VLVideoProcessor(min_pixels=3136, max_pixels=10_000)
    metadata = oracle.VideoMetadata(total_num_frames=43, fps=float(RATE), duration=4.3)
    expected = processor(
        [torch.from_numpy(frames)], video_metadata=[metadata], fps=2.0, do_sample_frames=True,
        return_tensors="pt",
    )  # fmt: skip
    values = normalize(patchify_video(decoded(data).frames))
    assert torch.equal(values, expected["pixel_values_videos"])


def test_frames_are_counted_as_decoded_not_as_packed():
    whole = media.video(media.numbered_frames(12), "matroska", "mpeg2video")
    data = media.with_packets_that_show_nothing(whole)
    video = decoded(data, VideoRules(num_frames=4))
    assert video.total_frames == 12
    assert video.indices == (0, 3, 6, 9)
    assert_frames(video, data)


def test_variable_frame_rate():
    timestamps = [0, 40, 80, 500, 1000, 1040, 1900, 2500, 2540, 3000]
    data = media.video(media.numbered_frames(10), timestamps=timestamps)
    video = decoded(data, VideoRules(fps=100.0))
    assert video.times_s == pytest.approx([timestamp / 1000 for timestamp in timestamps], abs=1e-3)
    # the rate is frames over duration, not the header's guess
    assert 2.5 < video.fps < 3.4
    assert_frames(video, data)
    window = decoded(data, VideoRules(fps=100.0), start_s=0.9, end_s=2.0)
    assert window.times_s == pytest.approx([1.0, 1.04], abs=1e-3)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_in_the_metadata_is_applied(rotation):
    data = media.video(media.numbered_frames(6), rotation=rotation)
    video = decoded(data)
    upright = (64, 96) if rotation == 180 else (96, 64)
    assert (video.source_height, video.source_width) == upright
    assert any("rotated" in note for note in video.notes)
    assert_frames(video, data, turns=rotation // 90)


def test_gif_is_a_video_if_asked_for_as_one():
    video = decoded(media.animation(6))
    assert video.total_frames == 6
    assert video.frames.shape[0] == 4


def test_only_the_selected_frames_are_held():
    video = decode_video(drawn("mp4 h264", 120), VideoRules(fps=1.0), SMALL)
    assert video.frames.untyped_storage().nbytes() == video.frames.numel() == 12 * 3 * 56 * 84


def test_metadata_that_is_no_utf8():
    data = drawn("mp4 h264")
    assert b"isomiso2avc1mp41" in data
    video = decoded(data.replace(b"isomiso2avc1mp41", b"isom\xe9\xe8o2avc1mp41"))
    assert torch.equal(video.frames, decoded(data).frames)


# --- sampling


@settings(max_examples=1500, deadline=None)
@given(
    st.integers(1, 3000),
    st.floats(0.5, 120),
    st.none() | st.floats(0.05, 60),
    st.integers(2, 900),
    st.integers(1, 20),
    st.integers(1, 800),
)
@example(17, 10.0, None, 14, 4, 768)
@example(1, 10.0, 2.0, 2, 4, 768)
def test_indices_equal_the_reference_where_it_works(total, rate, fps, num_frames, low, high):
    assume(low <= high)
    rules = VideoRules(fps, None if fps else num_frames, low, high)
    indices = sample_indices(total, rate, rules)
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] < total
    assert len(indices) == 1 if total == 1 else len(indices) % 2 == 0
    try:
        expected = oracle.Qwen2VLVideoProcessor.sample_frames(
            oracle.Qwen2VLVideoProcessor(),
            oracle.VideoMetadata(total_num_frames=total, fps=rate),
            min_frames=low,
            max_frames=high,
            num_frames=rules.num_frames,
            fps=fps,
        ).tolist()
    except (ZeroDivisionError, ValueError):
        return  # no frame, or more than there are: the reference gives up
    assert indices == expected[: len(indices)]
    assert expected[len(indices) :] in ([], [total])  # its one index too many


def test_one_index_too_many_is_dropped():
    assert len(sample_indices(17, 10.0, VideoRules(num_frames=14))) == 14


@pytest.mark.parametrize(
    ("total", "rate", "rules", "word"),
    [
        (100, 10.0, VideoRules(), None),
        (10, 10.0, VideoRules(), "min_frames 4"),
        (1000, 10.0, VideoRules(max_frames=16), "max_frames 16"),
        (9, 1.0, VideoRules(fps=4.0), "there are 9"),
        (9, 1.0, VideoRules(num_frames=20), "num_frames 20"),
        (1, 1.0, VideoRules(), "one frame"),
    ],
)
def test_notes_tell_what_clamped_the_frames(total, rate, rules, word):
    clamp = sampling_clamp(total, rate, rules)
    assert clamp is None if word is None else clamp is not None and word in clamp[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": 2.0, "num_frames": 4},
        {"fps": 0.0},
        {"fps": float("inf")},
        {"num_frames": 0},
        {"max_frames": -1},
        {"max_video_tokens": 0},
    ],
)
def test_rules_out_of_range(wrong):
    with pytest.raises(ValueError, match="expected"):
        VideoRules(**wrong)


# --- windows


@pytest.mark.parametrize("kind", ["mp4 h264", "mkv h264", "webm vp9", "avi mpeg4", "gif"])
@pytest.mark.parametrize(("start", "end"), [(0.5, 1.25), (None, 0.75), (0.85, None), (0.0, 60.0)])
def test_a_window_is_sampled_as_a_video_of_its_own(kind, start, end):
    data = drawn(kind)
    rules = VideoRules(fps=5.0, min_frames=2)
    video = decoded(data, rules, start_s=start, end_s=end)
    first = next(i for i in range(COUNT) if i / RATE >= (start or 0) - 1e-9)
    inside = [i for i in range(first, COUNT) if i / RATE < (end or 99) - 1e-9]
    assert video.indices == tuple(first + i for i in sample_indices(len(inside), RATE, rules))
    assert video.times_s == pytest.approx([i / RATE for i in video.indices], abs=1e-3)
    assert_frames(video, data)


def test_a_window_within_one_frame_gives_that_frame():
    video = decoded(drawn("mp4 h264"), start_s=0.92, end_s=0.97)
    assert video.indices == (9,)
    assert any("within the frame at 0.900 s" in note for note in video.notes)


def test_a_window_beyond_the_end_is_clamped_and_told():
    video = decoded(drawn("mp4 h264"), start_s=-1.0, end_s=60.0)
    notes = " ".join(video.notes)
    assert "1.700 s instead of 60 s" in notes
    assert "0 s instead of -1 s" in notes


@pytest.mark.parametrize(
    ("start", "end"),
    [(5.0, 9.0), (1.7, None), (1.0, 1.0), (1.2, 0.3), (None, -1.0), (float("nan"), 1.0)],
)
def test_windows_that_hold_nothing(start, end):
    error = error_of(drawn("mp4 h264"), start_s=start, end_s=end)
    assert error.code == "media_empty"
    assert "window" in str(error)


def test_a_window_does_not_decode_what_comes_after_it():
    data = drawn("mp4 h264", 100)
    limits = MediaLimits(max_frames_decoded=40, max_duration_s=4.0)
    assert decode_video(data, VideoRules(), SMALL, limits, 0.5, 2.0).indices[0] == 5
    assert error_of(data, limits=limits).code == "decode_too_large"


# --- what is wrong with a file


def error_of(data: bytes, rules: VideoRules | None = None, **more: object) -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode_video(data, rules or VideoRules(), SMALL, **more)
    assert len(str(caught.value)) > 20
    return caught.value


@pytest.mark.parametrize("kind", TOLD_LENGTH)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_truncated_videos(kind, share):
    assert error_of(media.cut(drawn(kind), share)).code == "decode_corrupt"


def test_a_truncated_gif_animation():
    assert error_of(media.cut(media.animation(6), 0.7)).code == "decode_corrupt"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "media_empty"),
        (b"no video at all, whatever its name says", "decode_unsupported"),
        (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "decode_unsupported"),
        (b"ffconcat version 1.0\nfile '/etc/hostname'\n", "decode_unsupported"),
        (
            b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'/>",
            "decode_unsupported",
        ),
        (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n", "decode_unsupported"),
    ],
)
def test_files_that_are_no_videos(data, code):
    assert error_of(data).code == code


def test_a_picture_is_no_video():
    error = error_of(media.jpeg())
    assert error.code == "decode_unsupported"
    assert "JPEG" in str(error)


def test_sound_without_pictures():
    error = error_of(media.audio_only())
    assert error.code == "decode_unsupported"
    assert "no video stream" in str(error)


def test_a_header_without_frames():
    data = drawn("mkv h264")
    assert error_of(data[: data.index(b"\x1f\x43\xb6\x75")]).code in (
        "media_empty",
        "decode_corrupt",
    )


def test_damage_in_the_middle_is_not_shown_as_pictures():
    data = bytearray(drawn("avi mpeg4", 60))
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    assert error_of(bytes(data), VideoRules(num_frames=60)).code == "decode_corrupt"


def test_a_recording_that_begins_between_key_frames():
    frames = media.numbered_frames(60)
    data = media.video(frames, "mpegts", "mpeg2video", 25, options={"g": "15", "bf": "0"})
    late = data[188 * 12 :]
    video = decoded(late, VideoRules(fps=25.0))
    assert video.total_frames < 60
    assert_frames(video, late)


def limited(**changes: object) -> MediaLimits:
    return dataclasses.replace(MediaLimits(), **changes)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (limited(max_frames_decoded=10), "17 frames"),
        (limited(max_duration_s=1.5), "1.7 s"),
        (limited(max_video_pixels=64 * 96 - 1), "96 x 64"),
    ],
)
@pytest.mark.parametrize("kind", ["mp4 h264", "mkv h264", "mpeg-ts h264", "avi mpeg4", "gif"])
def test_limits(kind, limits, words):
    error = error_of(drawn(kind), limits=limits)
    assert error.code == "decode_too_large"
    assert words in str(error) or "limit of 6143 pixels" in str(error)


def test_more_visual_tokens_than_the_model_takes():
    with pytest.raises(PromptError, match="max_pixels") as caught:
        decode_video(drawn("mp4 h264"), VideoRules(), SMALL, limited(max_visual_tokens=11))
    assert caught.value.code == "context_too_long"
    assert decode_video(drawn("mp4 h264"), VideoRules(), SMALL, limited(max_visual_tokens=12))


@pytest.mark.parametrize("form", ["mp4", "avi"])
def test_a_colour_space_that_cannot_be_converted(form):
    ycgco = media.video(media.numbered_frames(6), form, options={"colorspace": "8"})
    assert error_of(ycgco).code == "decode_unsupported"
    with pytest.raises(MediaError, match="to RGB") as caught:
        scene_cuts(ycgco)
    assert caught.value.code == "decode_unsupported"


def test_longer_than_200_to_1():
    data = media.video(media.numbered_frames(2, 4, 2000), codec="mpeg4")
    assert "200 times" in str(error_of(data))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_a_media_error(data):
    whole = drawn(data.draw(st.sampled_from(sorted(KINDS)), label="kind"))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6), label="bytes")):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    # any other error than a MediaError fails this test
    with contextlib.suppress(MediaError):
        assert decoded(bytes(damaged)).frames.dtype == torch.uint8
