"""Damage that players conceal is a note where the container tells it; sound files have none."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from mediamill.model.errors import MediaError
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.transport_stream import transport_codecs
from mediamill.model.media.video import decode_video
from tests import media, videos

FRAMES = media.numbered_frames(12, 48, 64)
OGG = (Path(__file__).parent / "data" / "static.ogv").read_bytes()


def notes_of(data: bytes) -> list[str]:
    notes = decode_video(data, VideoRules(num_frames=4), ImageRules()).notes
    return [note for note in notes if "damage" in note or "cut off" in note]


@pytest.mark.parametrize("codec", ["libvpx", "ffv1", "rawvideo"])
def test_clusters_of_matroska(codec):
    data = videos.encoded(FRAMES, "matroska", codec, options={"g": "4"})
    assert notes_of(data) == []
    start = data.rindex(b"\x1f\x43\xb6\x75")
    places = range(start + (len(data) - start) // 3, len(data) - 200, 97)
    noted = 0
    for place in places:
        try:
            notes = notes_of(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        except MediaError:
            continue
        assert any("wrong checksum of 1 clusters, first of cluster" in note for note in notes)
        noted += 1
    assert noted


def test_clusters_without_checksums():
    assert notes_of(videos.encoded(FRAMES, "webm", "libvpx")) == []


def test_pages_of_ogg():
    assert notes_of(OGG) == []
    place = OGG.rindex(b"OggS")
    damaged = OGG[: place + 22] + bytes([OGG[place + 22] ^ 1]) + OGG[place + 23 :]
    pages = OGG.count(b"OggS")
    assert f"damage: wrong checksum of 1 pages, first of page {pages}" in notes_of(damaged)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_transport_streams_that_end_within_a_packet(codec):
    data = videos.encoded(FRAMES, "mpegts", codec, options={"bf": "0"})
    assert notes_of(data) == []
    assert notes_of(data[:-100]) == ["the file ends within a packet: it may be cut off"]


CODECS = {"libx264": "H.264", "libx265": "H.265", "mpeg2video": "MPEG-2"}


@pytest.fixture(scope="module")
def streams():
    options = {"libx265": videos.X265_QUIET}
    return {
        codec: videos.encoded(FRAMES, "mpegts", codec, options=options.get(codec))
        for codec in CODECS
    }


@pytest.mark.parametrize("size", [188, 192, 204])
def test_transport_streams_that_go_on_in_another_codec(streams, size):
    def laid_out(data: bytes) -> bytes:
        packets = [data[start : start + 188] for start in range(0, len(data), 188)]
        before, after = (4, 0) if size == 192 else (0, size - 188)
        return b"".join(bytes(before) + packet + bytes(after) for packet in packets)

    for first, second in itertools.product(CODECS, repeat=2):
        joined = laid_out(streams[first] + streams[second])
        if first == second:
            assert transport_codecs(MediaFile.of(joined)) == [CODECS[first]]
            assert notes_of(joined) == []
            continue
        words = rf"goes on in another codec \({CODECS[first]}, then {CODECS[second]}\)"
        with pytest.raises(MediaError, match=words) as caught:
            notes_of(joined)
        assert caught.value.code == "decode_unsupported"


def test_any_bytes_are_no_tables(streams):
    rng = np.random.default_rng(3)
    for _ in range(300):
        data = np.frombuffer(streams["libx264"][: 188 * 6], np.uint8).copy()
        data[rng.integers(0, len(data), 20)] = rng.integers(0, 256, 20)
        assert len(transport_codecs(MediaFile.of(data.tobytes()))) <= 6


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_ivf_that_ends_within_a_frame(codec):
    data = videos.encoded(FRAMES, "ivf", codec)
    assert notes_of(data) == []
    for end in (len(data) - 1, len(data) - 20, 2 * len(data) // 3):
        with pytest.raises(MediaError, match="its last frame should end at byte"):
            notes_of(data[:end])
