"""A cut is noticed where the container declares more; a sound file is never called cut off."""

import struct

import pytest

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import detect_format, find_truncation
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.video import decode_video
from tests import media, videos

FRAMES = media.numbered_frames(24, 48, 64)
LIVE_ASF_FLAG = 88
KINDS = {
    "flv": {"form": "flv", "codec": "flv"},
    "flv h264": {"form": "flv"},
    "asf": {"form": "asf", "codec": "wmv2"},
    "mp4": {"form": "mp4"},
    "mp4 index first": {"form": "mp4", "container_options": {"movflags": "faststart"}},
    "mp4 fragmented": {
        "form": "mp4", "container_options": {"movflags": "frag_keyframe+empty_moov"}
    },
    "mp4 dash": {
        "form": "mp4", "options": {"g": "6"},
        "container_options": {"movflags": "frag_keyframe+empty_moov+dash+global_sidx"},
    },
    "mov": {"form": "mov"},
    "mkv": {"form": "matroska"},
    "webm": {"form": "webm", "codec": "libvpx"},
    "avi": {"form": "avi", "codec": "mpeg4"},
}  # fmt: skip


def drawn(kind: str) -> bytes:
    options = KINDS[kind]
    if "faststart" in str(options) or "sidx" in str(options):
        return media.video(FRAMES, **options)  # FFmpeg reads this file again while it is written
    return videos.encoded(FRAMES, **options)


def cut_off(data: bytes) -> str | None:
    return find_truncation(data, detect_format(data).name)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_and_what_follows_them(kind):
    data = drawn(kind)
    assert cut_off(data) is None
    assert cut_off(data + bytes(300)) is None
    assert decode_video(data, VideoRules(num_frames=4), ImageRules()).total_frames == 24


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.29, 0.5, 0.8, 0.97])
def test_cut_files(kind, share):
    data = media.cut(drawn(kind), share)
    with pytest.raises(MediaError) as caught:
        decode_video(data, VideoRules(num_frames=4), ImageRules())
    assert caught.value.code == "decode_corrupt"


def test_a_dash_file_without_its_last_fragment():
    data = drawn("mp4 dash")
    last = data.rindex(b"moof") - 4
    assert cut_off(data[:last]) is not None


def test_an_index_of_samples_beyond_the_end():
    data = bytearray(drawn("mp4 index first"))
    start = data.index(b"mdat") - 4
    data[start : start + 4] = bytes(4)  # the box goes on to the end of the file
    assert cut_off(bytes(data)) is None
    assert "video" in cut_off(bytes(data[:-200]))


# --- FLV


def with_number(flv: bytes, name: bytes, value: float) -> bytes:
    start = flv.index(name) + len(name) + 1
    return flv[:start] + struct.pack(">d", value) + flv[start + 8 :]


@pytest.mark.parametrize("kind", ["flv", "flv h264"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), 1e300, 5.0, 10**6])
@pytest.mark.parametrize("name", [b"duration", b"filesize"])
def test_one_wrong_number_is_no_cut(kind, name, value):
    """Recordings of live streams declare nothing, or what another file had."""
    assert cut_off(with_number(drawn(kind), name, value)) is None


@pytest.mark.parametrize("kind", ["flv", "flv h264"])
def test_a_live_recording_that_was_stopped_within_a_tag(kind):
    data = with_number(with_number(drawn(kind), b"duration", 0), b"filesize", 0)
    assert cut_off(data[:-300]) is None


@pytest.mark.parametrize("kind", ["flv", "flv h264"])
def test_a_cut_between_two_tags(kind):
    data = drawn(kind)
    offset, ends = 13, []
    while offset < len(data):
        offset += 15 + int.from_bytes(data[offset + 1 : offset + 4], "big")
        ends.append(offset)
    assert cut_off(data[: ends[5]]) is not None


# --- ASF


def test_live_asf():
    data = bytearray(drawn("asf"))
    properties = data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    data[properties + LIVE_ASF_FLAG] |= 1
    assert cut_off(bytes(data[:-500])) is None


def test_asf_without_the_index_behind_its_data():
    data = drawn("asf")
    header = int.from_bytes(data[16:24], "little")
    end = header + int.from_bytes(data[header + 16 : header + 24], "little")
    assert cut_off(data[:end]) is None


# --- Ogg


def page(serial: int, segments: bytes, flags: int = 0) -> bytes:
    return (
        b"OggS\0" + bytes([flags]) + bytes(8) + serial.to_bytes(4, "little") + bytes(8)
        + bytes([len(segments)]) + segments + bytes(sum(segments))
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "is_cut"),
    [
        (page(1, b"\x05", 2) + page(1, b"\x09", 4), False),
        (page(1, b"\x05", 2) + page(1, b"\x09"), False),  # no mark of the end: many have none
        (page(1, b"\x05", 2) + page(1, b"\xff\x09")[:-3], True),
        (page(1, b"\x05", 2) + page(1, b"\xff"), True),  # the packet goes on
        (page(1, b"\x05", 2) + page(1, b"\xff\0", 4), False),
        (page(1, b"\x05", 2) + page(1, b"\x07", 4) + b"ID3 and other bytes", False),
        (page(1, b"\x05", 2) + page(2, b"\xff") + page(1, b"\x07", 4) + page(2, b"\x01", 4), False),
        (page(1, b"\x05", 2) + page(1, b"\xff\xff")[:29], True),
    ],
)
def test_ogg(data, is_cut):
    assert (cut_off(data) is not None) == is_cut


# --- AVI


def test_an_opendml_index_beyond_the_end():
    data = drawn("avi")
    hole = data.index(b"JUNK")
    index = struct.pack("<4sIHBBI4s12xQII", b"indx", 40, 4, 0, 0, 1, b"00dc", len(data) - 40, 32, 9)
    whole = data[:hole] + index + data[hole + len(index) :]
    assert cut_off(whole) is None
    beyond = whole.replace(struct.pack("<Q", len(data) - 40), struct.pack("<Q", len(data) + 40))
    assert "index" in cut_off(beyond)


@pytest.mark.parametrize("form", ["WEBP", "PNG", "GIF"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_animations(form, share):
    data = media.animation(6, form)
    assert decode_video(data, VideoRules(), ImageRules()).total_frames == 6
    with pytest.raises(MediaError) as caught:
        decode_video(media.cut(data, share), VideoRules(), ImageRules())
    assert caught.value.code == "decode_corrupt"


def test_a_transport_stream_declares_nothing():
    data = videos.encoded(FRAMES, "mpegts")
    assert cut_off(media.cut(data, 0.7)) is None
