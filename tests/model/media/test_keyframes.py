"""Leaving out what chosen frames do not need: the frames stay the same, and fewer are decoded."""

import contextlib
import functools
import io
import itertools
from array import array
from collections.abc import Iterator

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.model.errors import MediaError
from mediamill.model.media import frame_reader, keyframe_decode
from mediamill.model.media import video as video_module
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.keyframes import (
    Keyframe,
    KeyframeIndex,
    KeyframeIndexBuilder,
    nal_unit_types,
)
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.video import Video, decode_video
from tests import media
from tests.model.media.test_video import KINDS, SMALL, assert_frames

COUNT, RATE, SECONDS = 72, 12, 6
X264 = {"g": "12", "keyint_min": "12", "sc_threshold": "0"}
FILES = {
    "mp4": {"options": X264},
    "mp4 no B-frames": {"options": {**X264, "bf": "0"}},
    "mp4 many B-frames": {"options": {**X264, "bf": "5", "b_strategy": "0", "b-pyramid": "2"}},
    "mp4 open GOPs": {"options": {**X264, "x264-params": "open-gop=1:bframes=3:b-adapt=0"}},
    "mp4 intra refresh": {"options": {**X264, "x264-params": "intra-refresh=1"}},
    "mp4 intra only": {"options": {**X264, "g": "1"}},
    "mp4 fragmented": {
        "options": X264, "container_options": {"movflags": "frag_keyframe+empty_moov"}
    },
    "mkv": {"form": "matroska", "options": X264},
    "mkv open GOPs": {
        "form": "matroska", "options": {**X264, "x264-params": "open-gop=1:bframes=3:b-adapt=0"}
    },
    "ts": {"form": "mpegts", "options": X264},
    "ts open GOPs": {
        "form": "mpegts", "options": {**X264, "x264-params": "open-gop=1:bframes=3:b-adapt=0"}
    },
    "ts interlaced": {"form": "mpegts", "options": {**X264, "x264-params": "tff=1"}},
    "flv h264": {"form": "flv", "options": X264},
    "avi h264": {"form": "avi", "options": X264},
    "mp4 h265": {
        "codec": "libx265",
        "options": {
            "x265-params": "log-level=none:bframes=0:rc-lookahead=0:keyint=12:min-keyint=12"
        },
    },
    "webm vp9": {"form": "webm", "codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8"}},
    "webm vp8": {
        "form": "webm", "codec": "libvpx",
        "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "10", "cpu-used": "8"},
    },
    "avi mpeg4": {"form": "avi", "codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "ts mpeg2": {"form": "mpegts", "codec": "mpeg2video", "rate": 25, "options": {"bf": "2"}},
    "ps mpeg2": {"form": "mpeg", "codec": "mpeg2video", "rate": 25, "options": {"bf": "2"}},
}  # fmt: skip
SKIPPING = ["mp4", "mp4 no B-frames", "mp4 many B-frames", "mp4 intra only", "mp4 fragmented",
            "mkv", "ts", "ts interlaced", "flv h264", "mp4 h265", "webm vp9"]  # fmt: skip


@functools.cache
def drawn(kind: str) -> bytes:
    options = {"rate": RATE, **FILES[kind]}
    return media.video(media.numbered_frames(SECONDS * options["rate"]), **options)


@contextlib.contextmanager
def decoding_everything() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_module, "decode_by_keyframes", lambda *_: False)
        yield


class _Counting:
    """A packet that counts how many of its kind are decoded."""

    def __init__(self, packet, counts) -> None:
        self.packet, self.counts = packet, counts

    def __getattr__(self, name):
        return getattr(self.packet, name)

    def decode(self):
        self.counts.append(self.packet.pts)
        return self.packet.decode()


@contextlib.contextmanager
def counted() -> Iterator[list[int | None]]:
    """The timestamps of the packets that are decoded, in this order."""
    counts: list[int | None] = []
    opened = keyframe_decode.open_video

    class Container:
        def __init__(self, container) -> None:
            self.container = container

        def demux(self, stream):
            return (_Counting(packet, counts) for packet in self.container.demux(stream))

        def seek(self, *arguments, **more):
            self.container.seek(*arguments, **more)

    @contextlib.contextmanager
    def watched(*arguments):
        with opened(*arguments) as (container, stream):
            yield Container(container), stream

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_reader, "open_video", watched)
        patch.setattr(keyframe_decode, "open_video", watched)
        yield counts


def decoded(data: bytes, rules: VideoRules, **more: object) -> Video:
    return decode_video(data, rules, SMALL, **more)


def assert_same(video: Video, expected: Video) -> None:
    assert video.indices == expected.indices
    assert video.times_s == expected.times_s
    assert video.fps == expected.fps
    assert video.total_frames == expected.total_frames
    assert video.notes == expected.notes
    assert torch.equal(video.frames, expected.frames)


@pytest.mark.parametrize("kind", FILES)
def test_frames_are_the_same_with_and_without(kind):
    data = drawn(kind)
    rng = np.random.default_rng(len(kind))
    for _ in range(5):
        rules = VideoRules(num_frames=int(rng.integers(2, 16)))
        start = float(rng.uniform(0, 4)) if rng.integers(2) else None
        end = (start or 0) + float(rng.uniform(0.2, 3)) if rng.integers(2) else None
        video = decoded(data, rules, start_s=start, end_s=end)
        with decoding_everything():
            assert_same(video, decoded(data, rules, start_s=start, end_s=end))
    assert_frames(decoded(data, VideoRules(fps=1.5)), data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_single_frame_of_the_other_containers(kind):
    data = media.video(media.numbered_frames(30), **{"rate": RATE, **KINDS[kind]})
    video = decoded(data, VideoRules(num_frames=4), start_s=0.9)
    with decoding_everything():
        assert_same(video, decoded(data, VideoRules(num_frames=4), start_s=0.9))


@pytest.mark.parametrize("kind", FILES)
def test_what_is_not_needed_is_not_decoded(kind):
    with counted() as timestamps:
        video = decoded(drawn(kind), VideoRules(num_frames=2), start_s=4.0, end_s=4.3)
    assert len(video.indices) == 2
    if kind in SKIPPING:
        assert len(timestamps) < 36  # of 72: the first few, and from the place before the window
    else:
        assert len(timestamps) >= 50


def test_a_minute_at_the_end_of_two_hours():
    data = _long_file(7200, 10)
    with counted() as timestamps:
        video = decoded(data, VideoRules(num_frames=6), start_s=7140.0, end_s=7200.0)
    assert len(timestamps) < 100
    assert video.total_frames == 7200
    assert video.indices == tuple(range(7140, 7200, 10))
    # the ceilings count what has to be decoded, not what the file holds
    limits = MediaLimits(max_frames_decoded=100, max_duration_s=90.0)
    assert_same(
        decoded(data, VideoRules(num_frames=6), limits=limits, start_s=7140.0, end_s=7200.0), video
    )
    with pytest.raises(MediaError, match="the limit is") as caught:
        decoded(data, VideoRules(num_frames=6), limits=limits)
    assert caught.value.code == "decode_too_large"


def _long_file(seconds: int, gop: int) -> bytes:
    """One frame a second; the packets of a few GOPs, again and again."""
    options = {"g": str(gop), "bf": "0", "sc_threshold": "0"}
    source = media.video(media.numbered_frames(gop * 4), rate=1, options=options)
    return remuxed(source, repeat=seconds // (gop * 4))


def remuxed(
    data: bytes, form: str = "mp4", repeat: int = 1, key=None, change=None, shift: int = 0,
    options: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    """The same packets in another file.

    key: from (number, flag) to the flag that is written. change: from (number, bytes) to the bytes
    that are. shift: of all times, in the stream's unit.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=form, options=options or {}) as container:
        stream, number, offset = None, 0, shift
        for _ in range(repeat):
            with av.open(io.BytesIO(data)) as source:
                if stream is None:
                    stream = container.add_stream_from_template(source.streams.video[0])
                span = source.streams.video[0].duration or 0
                for packet in source.demux(video=0):
                    if packet.size == 0:
                        continue
                    content = bytes(packet) if change is None else change(number, bytes(packet))
                    copy = av.Packet(content)
                    copy.time_base = packet.time_base
                    copy.pts = packet.pts + offset
                    copy.dts = None if packet.dts is None else packet.dts + offset
                    copy.duration = packet.duration
                    flag = packet.is_keyframe
                    copy.is_keyframe = flag if key is None else key(number, flag)
                    copy.stream = stream
                    container.mux(copy)
                    number += 1
                offset += span
    return file.getvalue()


@pytest.mark.parametrize("kind", ["mp4", "mp4 many B-frames", "webm vp9", "mp4 h265"])
@pytest.mark.parametrize("form", ["mp4", "matroska"])
@pytest.mark.parametrize(
    "key", [lambda *_: True, lambda number, _: number % 5 == 0, lambda number, _: number == 0],
    ids=["all", "wrong ones", "only the first"],
)  # fmt: skip
def test_key_flags_that_lie(kind, form, key):
    data = remuxed(drawn(kind), form, key=key)
    assert_frames(decoded(data, VideoRules(num_frames=6)), data)
    assert_frames(decoded(data, VideoRules(fps=3.0), start_s=3.3), data)


def test_packets_that_show_nothing_are_found_at_the_beginning_at_least():
    data = media.with_packets_that_show_nothing(drawn("ts mpeg2"))
    assert_frames(decoded(data, VideoRules(num_frames=6)), data)


def test_variable_frame_rate():
    rng = np.random.default_rng(0)
    timestamps = np.cumsum(rng.integers(10, 400, COUNT)).tolist()
    data = media.video(media.numbered_frames(COUNT), timestamps=timestamps, options=X264)
    for start in (None, 2.0, 9.5):
        for count in (2, 5, 9):
            video = decoded(data, VideoRules(num_frames=count), start_s=start)
            assert_frames(video, data)
            origin = (np.array(timestamps) - timestamps[0]) / 1000
            expected = [origin[i] for i in video.indices]
            assert video.times_s == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("shift", [-4000, -13_000, 5000])
def test_edit_lists(shift):
    """Frames before the time 0 are decoded and not shown."""
    data = remuxed(
        drawn("mp4 many B-frames"), shift=shift, options={"avoid_negative_ts": "disabled"}
    )
    for start in (None, 2.1):
        video = decoded(data, VideoRules(num_frames=7), start_s=start)
        assert_frames(video, data)
        with decoding_everything():
            assert_same(video, decoded(data, VideoRules(num_frames=7), start_s=start))


def test_headers_that_change_on_the_way():
    first = media.video(media.numbered_frames(24), "mpegts", rate=12, options=X264)
    second = media.video(
        media.numbered_frames(24, 96, 64), "mpegts", rate=12, options={**X264, "bf": "0"}
    )
    data = _joined(first, second)
    for start in (None, 1.0, 2.5):
        video = decoded(data, VideoRules(num_frames=4), start_s=start)
        with decoding_everything():
            assert_same(video, decoded(data, VideoRules(num_frames=4), start_s=start))


def _joined(*files: bytes) -> bytes:
    file, offset = io.BytesIO(), 0
    with av.open(file, "w", format="mpegts") as container:
        stream = None
        for data in files:
            with av.open(io.BytesIO(data)) as source:
                if stream is None:
                    stream = container.add_stream_from_template(source.streams.video[0])
                last = 0
                for packet in source.demux(video=0):
                    if packet.dts is None:
                        continue
                    last = max(last, packet.pts)
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    container.mux(packet)
                offset += last + 15_000
    return file.getvalue()


# --- damage


def _damaged(kind: str, numbers: range) -> bytes:
    """Packets whose picture data are other bytes."""
    rng = np.random.default_rng(0)

    def change(number: int, content: bytes) -> bytes:
        if number not in numbers:
            return content
        return rng.integers(0, 256, len(content), np.uint8).tobytes()

    return remuxed(drawn(kind), change=change)


@pytest.mark.parametrize("kind", ["mp4", "mp4 no B-frames", "mp4 many B-frames"])
def test_damage_before_the_window_does_not_matter(kind):
    data = _damaged(kind, range(26, 34))
    rules = VideoRules(num_frames=8)
    video = decoded(data, rules, start_s=4.0, end_s=5.0)
    assert torch.equal(video.frames, decoded(drawn(kind), rules, start_s=4.0, end_s=5.0).frames)
    with pytest.raises(MediaError) as caught:
        decoded(data, VideoRules(num_frames=COUNT))
    assert caught.value.code == "decode_corrupt"


@pytest.mark.parametrize("kind", ["mp4", "mp4 no B-frames", "mp4 many B-frames"])
def test_damage_within_the_window_does(kind):
    for first in (48, 50, 54):
        data = _damaged(kind, range(first, first + 2))
        with pytest.raises(MediaError) as caught:
            decoded(data, VideoRules(num_frames=12), start_s=4.0, end_s=5.0)
        assert caught.value.code == "decode_corrupt"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_a_media_error_or_harmless(data):
    """What is shown of a damaged file is what decoding everything shows, if that shows anything.

    Damage in packets that need not be decoded is the exception: what a decoder conceals there may
    show in later frames of a decode of everything, which tells so.
    """
    whole = drawn(data.draw(st.sampled_from(SKIPPING), label="kind"))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4), label="bytes")):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    rules = VideoRules(num_frames=data.draw(st.integers(2, 12)))
    video = expected = None
    with contextlib.suppress(MediaError):
        video = decoded(bytes(damaged), rules)
    with decoding_everything(), contextlib.suppress(MediaError):
        expected = decoded(bytes(damaged), rules)
    if expected is None or video is None or video.indices != expected.indices:
        return
    if video.notes == expected.notes:
        assert torch.equal(video.frames, expected.frames)


# --- the index builder alone

IDR, SPS, PPS, SLICE = b"\x65idr", b"\x67sps", b"\x68pps", b"\x41slice"


def units(*bodies: bytes, lengths: int = 0) -> bytes:
    if not lengths:
        return b"".join(b"\0\0\0\1" + body for body in bodies)
    return b"".join(len(body).to_bytes(lengths, "big") + body for body in bodies)


@pytest.mark.parametrize("lengths", [0, 1, 2, 4])
def test_units_of_a_packet(lengths):
    assert nal_unit_types(units(SPS, PPS, IDR, lengths=lengths), "h264", lengths) == {7, 8, 5}
    assert nal_unit_types(units(SLICE, IDR, lengths=lengths), "h264", lengths) == {1}
    assert nal_unit_types(units(b"\x40\1v", b"\x2a\1cra", lengths=lengths), "hevc", lengths) == {
        32,
        21,
    }


@given(st.binary(max_size=60), st.sampled_from(["h264", "hevc"]), st.sampled_from([0, 1, 2, 3, 4]))
def test_units_of_any_bytes(data, codec, lengths):
    assert all(0 <= kind < 64 for kind in nal_unit_types(data, codec, lengths))


def index_builder(container: str = "mov", codec: str = "h264") -> KeyframeIndexBuilder:
    return KeyframeIndexBuilder(container, codec, b"\1\x64\0\x1f\xff")


def seen(*packets: tuple[int | None, bytes | None]) -> list[tuple[int, int]]:
    """(packet, timestamp) of each keyframe of the index."""
    builder = index_builder()
    for number, (timestamp, data) in enumerate(packets):
        builder.add(number, timestamp, data, is_shown=True)
    index = builder.build()
    return [(keyframe.packet, keyframe.timestamp) for keyframe in index]


def test_only_idr_pictures_count_that_nothing_earlier_follows():
    idr, inter = units(IDR, lengths=4), units(SLICE, lengths=4)
    assert seen((0, idr), (2, None), (1, None), (3, idr)) == [(0, 0), (3, 3)]
    assert seen((0, idr), (1, inter)) == [(0, 0)]
    assert seen((0, idr), (5, None), (3, idr)) == [(0, 0)]
    assert seen((0, idr), (None, None), (9, idr)) == []


def test_headers_in_some_key_frames_only():
    bare, whole = units(IDR, lengths=4), units(SPS, PPS, IDR, lengths=4)
    assert seen((0, whole), (1, bare)) == []
    assert len(seen((0, whole), (1, whole))) == 2


@pytest.mark.parametrize(
    ("container", "codec"), [("avi", "h264"), ("mov", "mpeg4"), ("asf", "av1")]
)
def test_containers_and_codecs_that_tell_too_little(container, codec):
    builder = index_builder(container, codec)
    builder.add(0, 0, units(IDR, lengths=4), is_shown=True)
    assert not len(builder.build())


@given(st.lists(st.integers(0, 1000), unique=True, max_size=30), st.integers(-5, 1005))
def test_the_last_keyframe_before_a_timestamp(timestamps, timestamp):
    timestamps = sorted(timestamps)
    keyframes = [Keyframe(number, start, 9) for number, start in enumerate(timestamps)]
    index = KeyframeIndex(array("q", itertools.chain(*keyframes)))
    earlier = [keyframe for keyframe in keyframes if keyframe.timestamp <= timestamp]
    assert index.last_before(timestamp) == (earlier[-1] if earlier else None)
