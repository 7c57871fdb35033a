"""How long a video lasts by its header: as its packets tell, within a frame."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import detect_format
from mediamill.model.media.duration import WholeFileNeededError, duration_s
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.video import decode_video, video_format
from mediamill.model.media.video_file import scan_packets
from tests import media
from tests.hostile.samples import samples
from tests.model.media.test_keyframes import drawn, remuxed
from tests.model.media.test_video import SMALL
from tests.model.media.test_windows import EVERY, file_of

HEADERS = ("mov", "matroska", "avi")
UNTOLD = ("mp4 fragmented", "small mp4 h264 fragmented", "mkv without an index")


def truth(data: bytes) -> tuple[float, float]:
    """Seconds by the packets, and those of the longest frame."""
    content = MediaFile.of(data)
    timeline = scan_packets(content, video_format(content), MediaLimits()).timeline
    times = [timeline.seconds(timestamp) for timestamp in (*timeline.timestamps, timeline.end)]
    return timeline.duration_s, float(np.diff(times).max())


def without(data: bytes) -> bytes:
    """The same file with a hole where the pictures are."""
    holes = bytearray(data)
    with av.open(io.BytesIO(data)) as container:
        for packet in container.demux(video=0):
            if packet.pos and packet.size:
                holes[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    return bytes(holes)


@pytest.mark.parametrize("name", EVERY)
def test_it_is_that_of_the_packets_within_a_frame(name):
    data = file_of(name)
    expected, frame = truth(data)
    exact = detect_format(data).name not in HEADERS
    assert duration_s(data) == pytest.approx(expected, abs=1e-9 if exact else frame)
    for source in (data, without(data)):
        try:
            measured = duration_s(source, complete=False)
        except WholeFileNeededError:
            first_packet_needed = detect_format(data).name != "mov" and source is not data
            assert exact or name in UNTOLD or first_packet_needed
        else:
            assert not exact
            assert measured == pytest.approx(expected, abs=frame)


@pytest.mark.parametrize("name", [name for name in EVERY if "vp9" in name or "mp4" in name])
def test_no_packet_is_read_where_the_header_tells(name, monkeypatch):
    def read(*_):
        raise AssertionError("the packets were read")

    monkeypatch.setattr("mediamill.model.media.probe_cache.scan_packets", read)
    assert duration_s(file_of(name)) > 1


def film(form: str, sound_s: float, streams: int = 1) -> bytes:
    """Pictures of 2 s at 10 a second, in as many streams, and sound that is longer or shorter."""
    source = media.video(media.numbered_frames(20), rate=10, options={"bf": "0"})
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        with av.open(io.BytesIO(source)) as original:
            pictures = original.streams.video[0]
            copies = [container.add_stream_from_template(pictures) for _ in range(streams)]
            sound = container.add_stream("mp3" if form == "avi" else "aac", rate=16000)
            sound.layout = "mono"
            for packet in original.demux(pictures):
                if not packet.size:
                    continue
                for copy in copies:
                    copied = av.Packet(bytes(packet))
                    copied.time_base, copied.pts, copied.dts = (
                        packet.time_base,
                        packet.pts,
                        packet.dts,
                    )
                    copied.duration, copied.is_keyframe = packet.duration, packet.is_keyframe
                    copied.stream = copy
                    container.mux(copied)
        samples_left = int(16000 * sound_s)
        at = 0
        while samples_left > at:
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = 16000, at, Fraction(1, 16000)
            container.mux(sound.encode(frame))
            at += 1024
        container.mux(sound.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("form", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize("sound_s", [0.5, 7.0])
@pytest.mark.parametrize("streams", [1, 2])
def test_sound_and_other_streams_do_not_count(form, sound_s, streams):
    data = film(form, sound_s, streams)
    assert duration_s(data) == pytest.approx(2.0, abs=0.1)
    assert duration_s(data) == pytest.approx(decode_video(
        data, VideoRules(do_sample_frames=False), SMALL
    ).total_frames / 10, abs=0.1)  # fmt: skip


def test_a_stream_of_a_longer_file_is_not_believed():
    """Some tools keep the tags of the file that they have cut."""
    data = film("matroska", 7.0)
    at = data.index(b"00:00:02.0")
    lying = data[:at] + b"00:09:02.0" + data[at + 10 :]
    assert duration_s(lying) == pytest.approx(2.0, abs=0.1)
    with pytest.raises(WholeFileNeededError):
        duration_s(lying, complete=False)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "media_empty"),
        (b"no video at all, whatever its name says", "decode_unsupported"),
        (media.jpeg(), "decode_unsupported"),
        (media.audio_only(), "decode_unsupported"),
        (media.cut(drawn("mp4")), "decode_corrupt"),
        (media.cut(drawn("mkv")), "decode_corrupt"),
    ],
    ids=range(6),
)
def test_what_is_no_video(data, code):
    with pytest.raises(MediaError) as caught:
        duration_s(data)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "data", [media.cut(drawn("mp4")), media.audio_only(), drawn("mp4")[:100]], ids=range(3)
)
def test_what_may_be_a_hole_asks_for_the_whole_file(data):
    with pytest.raises(WholeFileNeededError):
        duration_s(data, complete=False)


def test_a_sparse_file_is_read_at_its_ends_only(tmp_path):
    """Head and index lie at both ends of a file that is larger than any memory."""
    data = remuxed(drawn("mp4 no B-frames"), repeat=6)
    middle, index = data.index(b"mdat") + 4, data.index(b"moov") - 4
    size = 2**40
    path = tmp_path / "video"
    with path.open("wb") as file:
        file.write(data[: middle - 8] + (1).to_bytes(4, "big") + b"mdat")
        file.write((size - (middle - 8)).to_bytes(8, "big"))
        file.seek(size)
        file.write(data[index:])
    assert duration_s(path, complete=False) == pytest.approx(36.0, abs=0.1)


def test_samples_beyond_the_ceiling():
    with pytest.raises(MediaError, match="the limit is 8"):
        duration_s(drawn("mp4"), MediaLimits(max_packets=8))
    with pytest.raises(MediaError, match="the limit is 8"):
        duration_s(drawn("ts"), MediaLimits(max_packets=8))


VIDEOS = [sample for sample in samples() if sample.video]


@pytest.mark.parametrize("sample", VIDEOS, ids=lambda sample: sample.name)
def test_every_kind_of_sample(sample):
    whole = decode_video(sample.data, VideoRules(do_sample_frames=False), SMALL)
    assert duration_s(sample.data) >= whole.times_s[-1]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_a_media_error_or_a_number(data):
    whole = file_of(data.draw(st.sampled_from(sorted(EVERY)), label="name"))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6), label="bytes")):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    for complete in (True, False):
        try:
            measured = duration_s(bytes(damaged), complete=complete)
        except (MediaError, WholeFileNeededError):
            continue
        assert 0 <= measured < float("inf")
