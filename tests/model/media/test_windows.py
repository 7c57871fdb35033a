"""Windows of one video: together they are the video, and none costs what the whole file costs."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.model.errors import MediaError
from mediamill.model.media import keyframe_decode, probe_cache
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.media.video import decode_video
from mediamill.model.processor import Processor
from mediamill.model.tiny import CHECKPOINT
from tests import media
from tests.model.media.test_keyframes import (
    FILES,
    X264,
    assert_same,
    counted,
    decoding_everything,
    drawn,
    remuxed,
)
from tests.model.media.test_video import KINDS, SMALL
from tests.model.media.test_video import drawn as small_drawn

ALL = VideoRules(do_sample_frames=False)
TIMESTAMPS = np.cumsum(np.random.default_rng(0).integers(10, 400, 72)).tolist()


def odd_files() -> dict[str, bytes]:
    """Those with a turn, a variable rate, frames that are not shown, or sound before pictures."""
    return {
        "variable rate mp4": media.video(
            media.numbered_frames(72), timestamps=TIMESTAMPS, options=X264
        ),
        "variable rate mkv": media.video(
            media.numbered_frames(72), "matroska", timestamps=TIMESTAMPS, options=X264
        ),
        "turned": media.video(media.numbered_frames(72), rate=12, rotation=90, options=X264),
        "edit list": remuxed(
            drawn("mp4 many B-frames"), shift=-13_000, options={"avoid_negative_ts": "disabled"}
        ),
        "begins late": remuxed(drawn("mp4 no B-frames"), "matroska", shift=50_000),
        "mkv without an index": remuxed(drawn("mp4"), "matroska", options={"live": "1"}),
        "mkv of many clusters": remuxed(
            drawn("mp4"), "matroska", options={"cluster_size_limit": "2000"}
        ),
        "long mp4": remuxed(drawn("mp4 no B-frames"), repeat=6),
        "long mkv": remuxed(drawn("mp4 no B-frames"), "matroska", repeat=6),
    }  # fmt: skip


ODD = odd_files()
EVERY = {**{kind: kind for kind in FILES}, **{f"small {kind}": kind for kind in KINDS},
         **{name: name for name in ODD}}  # fmt: skip


def file_of(name: str) -> bytes:
    if name in ODD:
        return ODD[name]
    return small_drawn(EVERY[name]) if name.startswith("small ") else drawn(name)


@pytest.mark.parametrize("name", EVERY)
def test_windows_that_join_hold_every_frame_once(name):
    data = file_of(name)
    whole = decode_video(data, ALL, SMALL)
    rng = np.random.default_rng(len(name))
    length = whole.times_s[-1] + 0.5
    for count in (2, 5):
        # Some edges lie on frames, some between them.
        edges = {float(rng.choice(whole.times_s[1:])), *rng.uniform(0.3, length, count).tolist()}
        seen: list[int] = []
        frames = []
        for start, end in itertools.pairwise([None, *sorted(edges), None]):
            try:
                window = decode_video(data, ALL, SMALL, None, start, end)
            except MediaError as error:
                if error.code != "media_empty":
                    raise
                continue
            if any("within the frame" in note for note in window.notes):
                continue
            for time in window.times_s:
                assert (start or 0) <= time < (end or 1e9)
            seen.extend(window.indices)
            frames.append(window.frames)
        assert seen == list(range(len(whole.indices)))
        assert torch.equal(torch.cat(frames), whole.frames)


SOUGHT = [
    name
    for name in EVERY
    if name not in {"variable rate mkv"}
    and any(part in name for part in ("mp4", "mkv", "webm", "turned"))
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SOUGHT), st.floats(0, 36), st.floats(0.01, 5), st.integers(1, 9))
def test_sought_frames_are_those_of_decoding_everything(name, start, length, count):
    data, rules = file_of(name), VideoRules(num_frames=count)
    window = start, start + length

    def decoded():
        try:
            return decode_video(data, rules, SMALL, None, *window)
        except MediaError as error:
            return error.code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyframe_decode, "_MIN_SEEK_PACKETS", 1)  # short files have no far places
        video = decoded()
    with decoding_everything():
        expected = decoded()
    if isinstance(expected, str):
        assert video == expected
    else:
        assert_same(video, expected)


@contextlib.contextmanager
def recording_seeks(successes: list[bool]) -> Iterator[None]:
    """Records whether each seek reached its keyframe."""
    search = keyframe_decode._seek

    def watched(*arguments):
        try:
            packets = search(*arguments)
            first = next(packets)
        except keyframe_decode._SeekError:
            successes.append(False)
            raise
        successes.append(True)
        yield first
        yield from packets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyframe_decode, "_seek", watched)
        yield


@pytest.mark.parametrize("name", ["long mp4", "long mkv"])
def test_an_index_is_followed(name):
    successes: list[bool] = []
    with recording_seeks(successes), counted() as timestamps:
        video = decode_video(ODD[name], VideoRules(num_frames=4), SMALL, None, 31.0, 32.0)
    assert successes == [True]
    assert len(timestamps) < 40  # of 432
    with decoding_everything():
        assert_same(
            video, decode_video(ODD[name], VideoRules(num_frames=4), SMALL, None, 31.0, 32.0)
        )


@pytest.mark.parametrize("shift", [-7, 7, 100])
def test_an_index_that_lies_is_not_followed(shift):
    """What it leads to is another packet: everything is read instead."""
    successes: list[bool] = []
    rules = VideoRules(num_frames=4)
    expected = decode_video(ODD["long mp4"], rules, SMALL, None, 31.0, 32.0)
    search = keyframe_decode._seek

    def elsewhere(container, stream, place):
        return search(container, stream, place._replace(size=place.size + shift))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyframe_decode, "_seek", elsewhere)
        with recording_seeks(successes):
            video = decode_video(ODD["long mp4"], rules, SMALL, None, 31.0, 32.0)
    assert successes == [False]
    assert_same(video, expected)


# --- the cache of files


@contextlib.contextmanager
def passes() -> Iterator[list[str]]:
    """What is done with whole files."""
    done: list[str] = []
    scan_packets, sha256 = probe_cache.scan_packets, MediaFile.sha256

    def scanned(*arguments):
        done.append("scan")
        return scan_packets(*arguments)

    def hashed(content):
        done.append("hash")
        return sha256(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_cache, "scan_packets", scanned)
        patch.setattr(MediaFile, "sha256", hashed)
        yield done


def aged(path: Path, data: bytes, seconds: int = 10) -> Path:
    """A file that was written some time ago; the system's own timestamp says so a little later."""
    path.write_bytes(data)
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))
    while MediaFile.of(path).identity is None:
        pass
    return path


@pytest.fixture(scope="module")
def checkpoint() -> Processor:
    return Processor.load(CHECKPOINT)


@pytest.fixture
def processor(checkpoint: Processor) -> Processor:
    return Processor(**{**vars(checkpoint), "probe_cache": ProbeCache()})


def test_the_second_window_of_a_file_costs_no_pass(processor, tmp_path):
    path = aged(tmp_path / "a", drawn("mp4"))
    with passes() as done:
        first = [processor.prepare_media(path, None, at, at + 1.0) for at in range(6)]
    assert done == ["scan", "hash"]
    for at, (visual, receipt) in enumerate(first):
        plain, expected = processor.prepare_media(drawn("mp4"), None, float(at), at + 1.0)
        assert torch.equal(visual.patches, plain.patches)
        assert receipt == expected


def test_two_files_are_cached_and_a_third_replaces_the_first(processor, tmp_path):
    paths = [aged(tmp_path / name, drawn("mp4") + bytes(size)) for size, name in enumerate("abc")]
    with passes() as done:
        for index in (0, 1, 0, 1):
            processor.prepare_media(paths[index], None, 1.0, 2.0)
        assert len(done) == 4
        processor.prepare_media(paths[2], None, 1.0, 2.0)
        processor.prepare_media(paths[2], None, 3.0, 4.0)
        assert len(done) == 6
        processor.prepare_media(paths[1], None, 1.0, 2.0)
    assert len(done) == 6


@pytest.mark.parametrize("how", ["in place", "another file", "just now"])
def test_other_bytes_under_the_same_name_are_another_file(processor, tmp_path, how):
    """Of the same length, with the same time of writing."""
    one, other = drawn("mp4"), bytearray(drawn("mp4"))
    other[-1] ^= 1  # of the name of the muxer
    path = aged(tmp_path / "a", one)
    facts = path.stat()
    first = processor.prepare_media(path, None, 1.0, 2.0)[1].sha256
    if how == "another file":
        path.unlink()
    path.write_bytes(bytes(other))
    if how != "just now":
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert processor.prepare_media(path, None, 1.0, 2.0)[1].sha256 != first


def test_bytes_are_looked_at_each_time(processor):
    with passes() as done:
        for _ in range(2):
            processor.prepare_media(drawn("mp4"), None, 1.0, 2.0)
    assert len(done) == 4


def test_the_cache_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(probe_cache, "_MAX_BYTES", 8 * 72 * 5)  # one file takes four
    cache, limits = ProbeCache(), MediaLimits()
    paths = [
        aged(tmp_path / name, drawn("mp4 intra only") + bytes(n)) for n, name in enumerate("ab")
    ]
    for path in paths:
        decode_video(path, ALL, SMALL, limits, probe_cache=cache)
    with passes() as done:
        decode_video(paths[1], ALL, SMALL, limits, probe_cache=cache)
        assert done == []
        decode_video(paths[0], ALL, SMALL, limits, probe_cache=cache)
        assert done == ["scan"]
        monkeypatch.setattr(probe_cache, "_MAX_BYTES", 8 * 72)
        for _ in range(2):
            decode_video(paths[1], ALL, SMALL, limits, probe_cache=cache)
        assert done == ["scan"] * 3


def test_other_limits_are_held_against_the_file(tmp_path):
    cache, path = ProbeCache(), aged(tmp_path / "a", drawn("mp4"))
    decode_video(path, ALL, SMALL, MediaLimits(), probe_cache=cache)
    with pytest.raises(MediaError, match="packets; the limit is 8"):
        decode_video(path, ALL, SMALL, MediaLimits(max_packets=8), probe_cache=cache)
