"""Odd and refused videos through the real decoding process: in time, with the right code."""

import time
from pathlib import Path

import pytest

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.decoding.decoder_pool import DecodeRequest, DecoderPool, MediumRequest
from mediamill.schemas.job import Limits
from tests import media, videos
from tests.pipeline.decoding.hostile_processor import FACTORY

MAX_S = 20.0  # of one file, on a busy machine; the limit of the pool is far higher
FLV, MP4 = videos.encoded(form="flv"), videos.encoded()
TS = videos.encoded(form="mpegts", rate=25)
WEBM = videos.encoded(form="webm", codec="libvpx")


def zeroed(data: bytes, start: float) -> bytes:
    """The bytes from a share of the file on are zeros."""
    kept = int(len(data) * start)
    return data[:kept] + bytes(len(data) - kept)


REFUSED = {
    "nothing": (b"", "media_empty"),
    "text": (b"no video at all", "decode_unsupported"),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\nhttp://a/b.ts\n", "decode_unsupported"),
    "a list of files": (b"ffconcat version 1.0\nfile a.mp4\n", "decode_unsupported"),
    "a picture": (media.jpeg(), "decode_unsupported"),
    "a still PNG": (media.animation(1, "PNG"), "decode_unsupported"),
    "a still WebP": (media.animation(1, "WEBP"), "decode_unsupported"),
    "sound": (media.audio_only(), "decode_unsupported"),
    "a header alone": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "decode_corrupt"),
    "cut FLV": (media.cut(FLV, 0.3), "decode_corrupt"),
    "cut MP4": (media.cut(MP4), "decode_corrupt"),
    "cut WebM": (media.cut(WEBM), "decode_corrupt"),
    "cut ASF": (media.cut(videos.encoded(form="asf", codec="wmv2")), "decode_corrupt"),
    "cut AVI": (media.cut(videos.encoded(form="avi", codec="mpeg4")), "decode_corrupt"),
    "cut WebP": (media.cut(media.animation(5, "WEBP")), "decode_corrupt"),
    "cut APNG": (media.cut(media.animation(5, "PNG")), "decode_corrupt"),
    "cut GIF": (media.cut(media.animation(5, "GIF")), "decode_corrupt"),
    "MP4 of zeros": (zeroed(MP4, 0.1), "decode_corrupt"),
    "TS of zeros": (zeroed(TS, 0.02), None),
    "FLV header alone": (b"FLV\1\5\0\0\0\x09\0\0\0\0", None),
    "Ogg of nothing": (b"OggS" + bytes(60), None),
    "H.264 of nothing": (b"\0\0\0\1\x67" + bytes(5000), None),
    "H.265 of nothing": (b"\0\0\0\1\x40\1" + bytes(5000), None),
    "MPEG of nothing": (b"\0\0\1\xb3" + bytes(5000), None),
    "IVF of nothing": (b"DKIF\0\0" + bytes(5000), None),
    "WebP chunks of nothing": (
        b"RIFF" + (4092).to_bytes(4, "little") + b"WEBPVP8X" + b"\x0a\0\0\0\2\0\0\0" + bytes(4076),
        "media_empty",
    ),
}  # fmt: skip
READ = {
    "mirrored": videos.with_matrix(MP4, (-1, 0, 0, 1)),
    "joined": TS + TS,
    "TS that begins within a packet": TS[100:],
    "TS with parity": b"".join(TS[at : at + 188] + bytes(16) for at in range(0, len(TS), 188)),
    "repeated": Path(__file__).parents[2] / "model/media/data/static.ogv",
    "animation": media.animation(5, "WEBP"),
    "PNG animation": media.animation(5, "PNG"),
    "without a container": videos.encoded(form="h264"),
}


@pytest.fixture(scope="module")
def decoder():
    limits = Limits(decode_timeout_s=60, decode_bytes=1 << 30)
    made = DecoderPool({"checkpoint": str(CHECKPOINT)}, limits, FACTORY)
    yield made
    made.close()


def answer(decoder, data):
    content = data if isinstance(data, Path) else memoryview(data)
    chat = {"prompt": CAPTION_PROMPT, "system": None}
    started = time.monotonic()
    (reply,) = decoder.prepare([DecodeRequest([MediumRequest(content, "video")], [chat])])
    assert time.monotonic() - started < MAX_S
    return reply


def test_the_process_is_ready(decoder):
    decoder.prepare([DecodeRequest([MediumRequest(memoryview(b""), "video")], [{"prompt": "a"}])])


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_come_in_time(decoder, name):
    data, code = REFUSED[name]
    failure = answer(decoder, data).failure
    assert failure is not None
    # No other code: the process did not die, and did not run out of time.
    assert failure.code in ({code} if code else {"decode_corrupt", "decode_unsupported"})


@pytest.mark.parametrize("name", READ)
def test_what_players_show_is_read(decoder, name):
    assert answer(decoder, READ[name]).failure is None
