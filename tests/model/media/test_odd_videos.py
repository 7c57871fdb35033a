"""Odd video files: all frames and times are those of a plain decode with PyAV."""

import contextlib
import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from mediamill.model.errors import MediaError
from mediamill.model.media.duration import duration_s
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.resize import resize
from mediamill.model.media.video import decode_video
from tests import media, videos

PIXELS = ImageRules(min_pixels=28 * 28, max_pixels=28 * 28 * 4)
ALL = VideoRules(do_sample_frames=False)
RATE = 25  # of streams without a container, and the only one here that MPEG-1 and 2 have
QUIET = videos.X265_QUIET

# (container, codec, pixel format, options)
FORMATS = [
    *(("matroska", "ffv1", form, {}) for form in (
        "yuv420p", "yuv422p", "yuv444p", "yuv410p", "yuv411p", "yuv440p", "gray", "gray10le",
        "gray12le", "gray16le", "yuv420p10le", "yuv422p12le", "yuv444p16le", "gbrp9le", "gbrp10le",
        "gbrp16le", "bgr0",
    )),
    *((form, "libx264", "yuv420p", {}) for form in (
        "mp4", "mov", "matroska", "avi", "mpegts", "flv", "h264", "3gp", "ipod", "f4v", "ismv",
    )),
    *(("mp4", "libx264", form, {}) for form in (
        "gray", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "nv12",
        "yuvj420p", "yuvj444p",
    )),
    *((form, "libx265", "yuv420p", QUIET) for form in ("mp4", "matroska", "mpegts", "hevc")),
    *(("mp4", "libx265", form, QUIET) for form in (
        "yuv420p10le", "yuv422p10le", "yuv444p", "gbrp",
    )),
    *((form, "mpeg4", "yuv420p", {}) for form in ("mp4", "avi", "matroska", "mov", "m4v")),
    *((form, "mpeg2video", "yuv420p", {}) for form in (
        "mpeg", "vob", "svcd", "mpegts", "mpeg2video", "matroska", "mov",
    )),
    *((form, "mpeg1video", "yuv420p", {}) for form in ("mpeg", "vcd", "mpegts", "mpeg1video")),
    ("mpegts", "mpeg2video", "yuv422p", {}),
    *((form, "mjpeg", "yuvj420p", {}) for form in ("avi", "mov", "matroska", "mjpeg")),
    ("mov", "mjpeg", "yuvj444p", {}), ("avi", "ljpeg", "bgr24", {"strict": "-1"}),
    *((form, "libvpx", "yuv420p", {}) for form in ("webm", "matroska", "ivf")),
    *((form, "libvpx-vp9", "yuv420p", {}) for form in ("webm", "mp4", "ivf")),
    ("webm", "libvpx-vp9", "yuv444p", {}), ("webm", "libvpx-vp9", "yuv420p10le", {}),
    ("asf", "wmv1", "yuv420p", {}), ("asf", "wmv2", "yuv420p", {}),
    ("avi", "msmpeg4", "yuv420p", {}), ("avi", "msmpeg4v2", "yuv420p", {}),
    ("flv", "flv", "yuv420p", {}), ("flv", "flashsv", "bgr24", {}),
    ("avi", "huffyuv", "yuv422p", {}), ("avi", "ffvhuff", "yuv444p", {}),
    ("avi", "utvideo", "yuv420p", {}), ("avi", "utvideo", "gbrp", {}),
    ("avi", "rawvideo", "bgr24", {}), ("avi", "rawvideo", "yuv420p", {}),
    ("avi", "cinepak", "rgb24", {}), ("avi", "zmbv", "bgr0", {}), ("avi", "magicyuv", "gbrp", {}),
    ("avi", "asv1", "yuv420p", {}), ("avi", "snow", "yuv420p", {"strict": "-2"}),
    ("mov", "prores_ks", "yuv422p10le", {}), ("mov", "prores_ks", "yuv444p10le", {}),
    ("mov", "qtrle", "rgb24", {}), ("mov", "qtrle", "rgb555be", {}), ("mov", "qtrle", "gray", {}),
    ("mov", "rpza", "rgb555", {}), ("mov", "png", "rgb24", {}), ("mov", "png", "gray", {}),
    ("mov", "png", "rgb48be", {}), ("mov", "rawvideo", "rgb24", {}),
    ("mov", "v210", "yuv422p10le", {}), ("mov", "jpeg2000", "yuv420p", {}),
    ("gif", "gif", "rgb8", {}), ("gif", "gif", "gray", {}), ("apng", "apng", "rgb24", {}),
    ("apng", "apng", "gray", {}), ("apng", "apng", "rgb48be", {}),
    ("mp4", "libsvtav1", "yuv420p", {"preset": "12"}),
]  # fmt: skip


def name_of(case: tuple[str, str, str, dict[str, str]]) -> str:
    return " ".join(case[:3])


def plain(data: bytes) -> tuple[list[np.ndarray], list[float | None]]:
    with av.open(io.BytesIO(data)) as container:
        frames = [
            (frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(video=0)
        ]
    return [pixels for pixels, _ in frames], [time for _, time in frames]


def assert_plain(data: bytes) -> None:
    frames, times = plain(data)
    video = decode_video(data, ALL, PIXELS)
    assert video.total_frames == len(frames)
    for seen, pixels in zip(video.frames, frames, strict=True):
        expected = torch.from_numpy(pixels).permute(2, 0, 1)
        assert torch.equal(seen, resize(expected, *video.frames.shape[2:]))
    if None not in times:
        ascending = sorted(times)
        expected_s = [time - ascending[0] for time in ascending]
        assert video.times_s == pytest.approx(expected_s, abs=1e-6)
    # The header may be off by a frame; AVI and ASF count a frame of another length.
    assert duration_s(data) == pytest.approx(video.total_frames / video.fps, abs=2.1 / RATE)


@pytest.mark.parametrize("case", FORMATS, ids=name_of)
def test_every_format(case):
    form, codec, pixel_format, options = case
    try:
        data = videos.encoded(
            form=form, codec=codec, pixel_format=pixel_format, options=options, rate=RATE
        )
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg does not write it: {error}")
    assert_plain(data)


@pytest.mark.parametrize("size", [(2, 2), (16, 16), (50, 34), (36, 130), (600, 8), (64, 2)])
@pytest.mark.parametrize("form", ["mp4", "webm", "matroska"])
def test_odd_sizes(form, size):
    codec = "libvpx" if form == "webm" else "libx264"
    data = videos.encoded(media.numbered_frames(3, *size), form, codec, rate=RATE)
    assert_plain(data)


@pytest.mark.parametrize(("form", "codec", "pixel_format"), [
    ("matroska", "ffv1", "yuv444p"), ("mov", "png", "rgb24"), ("webm", "libvpx", "yuv420p"),
    ("avi", "huffyuv", "rgb24"), ("mp4", "libx264", "yuv444p"),
])  # fmt: skip
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (49, 15)])
def test_odd_numbers_of_pixels(form, codec, pixel_format, size):
    frames = [media.draw(*size, seed=seed) for seed in range(3)]
    assert_plain(videos.encoded(frames, form, codec, pixel_format, rate=RATE))


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts", "avi", "flv", "asf", "mpeg", "gif"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_short_videos(form, count):
    codec = {"mpeg": "mpeg2video", "gif": "gif", "asf": "wmv2"}.get(form, "libx264")
    pixel_format = "rgb8" if form == "gif" else "yuv420p"
    data = videos.encoded(videos.FRAMES[:count], form, codec, pixel_format, rate=RATE)
    video = decode_video(data, ALL, PIXELS)
    assert video.total_frames == count
    assert 0 < duration_s(data) < 1


@pytest.mark.parametrize("start_s", [-3.0, 0.5, 3600.0])
@pytest.mark.parametrize("form", ["matroska", "mpegts", "mp4", "mov"])
def test_streams_that_start_elsewhere(form, start_s):
    base = videos.encoded(form="matroska", rate=RATE, options={"bf": "0"})
    if start_s < 0 and form in ("mp4", "mov"):
        pytest.skip("an edit list hides these frames")
    data = videos.remuxed(base, form, lambda _: start_s)
    video = decode_video(data, ALL, PIXELS)
    assert video.times_s == pytest.approx([index / RATE for index in range(8)], abs=1e-3)


def test_a_size_that_changes_on_the_way():
    first = videos.encoded(media.numbered_frames(6, 48, 64), "mpegts", rate=RATE)
    second = videos.encoded(media.numbered_frames(6, 64, 96), "mpegts", rate=RATE)
    video = decode_video(first + second, ALL, PIXELS)
    assert (video.total_frames, video.source_height, video.source_width) == (12, 48, 64)
    assert any("size changes at frame 6" in note for note in video.notes)


def test_empty_packets_repeat_the_picture():
    video = decode_video(Path(__file__).parent / "data" / "static.ogv", VideoRules(), PIXELS)
    assert video.times_s == (0.0, 0.5, 1.0, 1.5)
    assert video.total_frames == 20
    assert all(torch.equal(frame, video.frames[0]) for frame in video.frames)
    assert "18 empty packets repeat" in video.notes[0]


@pytest.mark.parametrize("numbers", [{3}, {1, 2}, {5, 6, 7}])
@pytest.mark.parametrize(("form", "codec"), [("avi", "mpeg4"), ("avi", "mjpeg"), ("mov", "mjpeg")])
def test_dropped_frames_leave_the_others_at_their_times(form, codec, numbers):
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    frames = media.numbered_frames(8, 48, 64)
    base = videos.encoded(frames, form, codec, pixel_format, rate=RATE, options={"g": "1"})
    file = io.BytesIO()
    with av.open(io.BytesIO(base)) as source, av.open(file, "w", format=form) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None and number not in numbers:
                packet.stream = stream
                container.mux(packet)
    video = decode_video(file.getvalue(), ALL, PIXELS)
    left = [number / RATE for number in range(8) if number not in numbers]
    assert video.times_s[: len(left)] == pytest.approx(left, abs=1e-3)


def test_damage_that_the_decoder_conceals_is_told():
    """As far as a decoder finds it: some damage gives other valid data, of VP8 any."""
    data = videos.encoded(media.numbered_frames(24, 96, 128), "mpegts", rate=RATE)
    notes = set()
    for place in range(len(data) // 4, len(data) - 1200, len(data) // 40):
        changed = bytearray(data)
        changed[place : place + 40] = b"\xff" * 40
        with contextlib.suppress(MediaError):
            notes.update(decode_video(bytes(changed), ALL, PIXELS).notes)
    assert any("concealed by the decoder" in note for note in notes)
