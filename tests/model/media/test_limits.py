"""Media on disk, and the limits that are checked before memory is allocated."""

import io
import os
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mediamill.model.errors import MediaError
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.images import decode_image, read_image
from mediamill.model.media.jpeg import scan_count
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.mp4_boxes import declared_samples
from mediamill.model.media.video import decode_video
from mediamill.model.processor import Processor
from tests import media
from tests.hostile.decoding import MIB, DecodeRequest, DecodeWorker
from tests.hostile.samples import samples

CHECKPOINT = Path(__file__).parents[3] / "model" / "tiny" / "checkpoint"
SAMPLES = {sample.name: sample for sample in samples()}


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.load(CHECKPOINT)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_is_read_as_its_bytes_are(processor: Processor, tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    kind = "video" if sample.video else None
    path = tmp_path / "medium"
    path.write_bytes(sample.data)
    visual, receipt = processor.prepare_media(sample.data, kind)
    for source in (path, memoryview(sample.data)):
        other, also = processor.prepare_media(source, kind)
        assert also == receipt
        assert torch.equal(other.patches, visual.patches)


def test_a_window_of_a_file_is_read_as_of_its_bytes(processor: Processor, tmp_path: Path) -> None:
    data = media.video(media.numbered_frames(60), options={"g": "10", "bf": "2"})
    path = tmp_path / "video"
    path.write_bytes(data)
    assert (
        processor.prepare_media(path, None, 2.0, 4.0)[1]
        == (processor.prepare_media(data, None, 2.0, 4.0)[1])
    )


def test_a_video_is_not_read_whole(processor: Processor, tmp_path: Path) -> None:
    size = 400 * 1024**2
    path = tmp_path / "video"
    with path.open("wb") as file:
        file.write(SAMPLES["MP4 H.264"].data + size.to_bytes(4, "big") + b"free")
        file.truncate(file.tell() - 8 + size)  # of zeros that take no room on the disk
    tracemalloc.start()
    try:
        _, receipt = processor.prepare_media(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert receipt.frame_indices == (0, 2, 4, 6)
    assert peak < 20 * 1024**2


def test_a_picture_is_held_against_its_ceiling_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    with path.open("wb") as file:
        file.write(media.jpeg())
        file.truncate(2**40)  # more than any memory
    with pytest.raises(MediaError, match=r"is 1099511627776 bytes long; the limit is 536870912"):
        read_image(path)


def test_a_pipe_or_a_folder_is_no_medium(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(MediaError, match="expected a file"):
            MediaFile.of(path)
    with pytest.raises(FileNotFoundError):
        MediaFile.of(tmp_path / "missing")


@pytest.mark.parametrize("name", ["MP4 H.264", "MP4 fragmented", "MP4 HEVC", "MOV MJPEG"])
def test_declared_samples_are_the_packets(name: str) -> None:
    data = SAMPLES[name].data
    with av.open(io.BytesIO(data)) as container:
        count = sum(packet.size > 0 for packet in container.demux(video=0))
    assert declared_samples(MediaFile.of(data)) == count


def test_sound_does_not_count_as_samples() -> None:
    """PCM has one for each of its values: an hour of it is more than any video."""
    data = media.audio_only(5)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.audio[0].frames > 20
    assert declared_samples(MediaFile.of(data)) == 0


@pytest.mark.parametrize(
    "name", [name for name in SAMPLES if name.startswith(("MP4", "MKV", "TS"))]
)
def test_a_limit_on_packets(name: str) -> None:
    data = SAMPLES[name].data
    video = decode_video(data, VideoRules(), ImageRules(), MediaLimits(max_packets=9))
    assert video.total_frames == 9
    with pytest.raises(MediaError, match="packets; the limit is 8") as caught:
        decode_video(data, VideoRules(), ImageRules(), MediaLimits(max_packets=8))
    assert caught.value.code == "decode_too_large"


@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_limits_without_end_are_no_damage(container: str) -> None:
    data = media.video(media.numbered_frames(9, 96, 64), container)
    end = 10**26
    rules = VideoRules(max_frames=end, max_pixels=end, total_pixels=end, max_tokens=end)
    limits = MediaLimits(max_video_pixels=end, max_frames_decoded=end, max_packets=end)
    expected = decode_video(data, VideoRules(), ImageRules(), MediaLimits())
    video = decode_video(data, rules, ImageRules(max_pixels=end), limits)
    assert len(video.frames) == len(expected.frames)


def test_a_limit_on_one_side() -> None:
    data = media.encode(Image.new("L", (500, 3)), "PNG")
    limits = MediaLimits(max_side=499)
    assert read_image(data, MediaLimits(max_side=500)).pixels.shape == (3, 3, 500)
    with pytest.raises(MediaError, match="500 x 3 pixels; the limit of one side is 499") as caught:
        read_image(data, limits)
    assert caught.value.code == "decode_too_large"
    clip = media.video(media.numbered_frames(3, 64, 512))
    with pytest.raises(MediaError, match="512 x 64 pixels; the limit of one side is 499"):
        decode_video(clip, VideoRules(), ImageRules(), limits)


def test_scans_are_counted_where_a_decoder_finds_them() -> None:
    picture = Image.fromarray(media.draw(90, 120))
    baseline = media.encode(picture, "JPEG")
    progressive = media.encode(picture, "JPEG", progressive=True)
    assert scan_count(baseline) == 1
    scans = progressive.count(b"\xff\xda")
    assert scan_count(progressive) == scans > 5
    last = progressive[progressive.rfind(b"\xff\xda") : -2]
    assert scan_count(progressive[:-2] + last * 7 + b"\xff\xd9") == scans + 7
    # What only looks like scans, before the picture and behind it, is none.
    comment = b"\xff\xfe" + (2 + 600).to_bytes(2, "big") + b"\xff\xda" * 300
    assert scan_count(baseline[:2] + comment + baseline[2:] + b"\xff\xda" * 300) == 1
    assert read_image(baseline[:2] + comment + baseline[2:]).pixels.shape == (3, 90, 120)


def test_a_limit_on_scans() -> None:
    data = media.encode(Image.fromarray(media.draw(90, 120)), "JPEG", progressive=True)
    scans = scan_count(data)
    assert read_image(data, MediaLimits(max_scans=scans)).pixels.shape == (3, 90, 120)
    with pytest.raises(MediaError, match=f"has {scans} scans; the limit is {scans - 1}") as caught:
        read_image(data, MediaLimits(max_scans=scans - 1))
    assert caught.value.code == "decode_too_large"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "CMYK", "I;16"])
def test_large_pictures_have_the_same_pixels_as_in_one_piece(mode: str) -> None:
    """They are converted in bands of a million pixels: this one has two and a part."""
    height, width = 1201, 2003
    if mode == "I;16":
        values = np.arange(height * width, dtype=np.uint32).reshape(height, width) % 65_536
        data = media.encode(Image.fromarray(values.astype(np.uint16)), "PNG")
        expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    else:
        picture = Image.fromarray(media.draw(height, width, 4), "RGBA")
        picture = picture.quantize(50) if mode == "P" else picture.convert(mode)
        form = "TIFF" if mode == "CMYK" else "PNG"
        data = media.encode(picture, form, **({"compress_level": 1} if form == "PNG" else {}))
        stored = Image.open(io.BytesIO(data))
        if "A" in stored.getbands() or "transparency" in stored.info:
            rgba = stored.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            expected = np.array(Image.alpha_composite(white, rgba).convert("RGB"))
        else:
            expected = np.array(stored.convert("RGB"))
    assert np.array_equal(decode_image(data).permute(1, 2, 0).numpy(), expected)


def test_an_end_of_memory_is_a_medium_too_large(processor: Processor, tmp_path: Path) -> None:
    """With real ends of memory in a worker of its own."""
    picture = media.encode(Image.new("RGB", (3000, 3000)), "PNG")
    clip = media.video(media.numbered_frames(5, 1440, 2560), codec="mpeg4")
    with DecodeWorker(tmp_path, 12 * MIB, timeout_s=60) as child:
        for data in (picture, clip):
            verdict = child.verdict(DecodeRequest(data))
            assert verdict.outcome == "decode_too_large", verdict
        assert child.verdict(DecodeRequest(media.jpeg())).outcome == "ok"
