"""Frames are shown as players show them: mirrored, turned, cropped, with square pixels."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mediamill.model.media.container_crop import NO_CROP, container_crop
from mediamill.model.media.display import Display, matrix_orientation
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.resize import resize
from mediamill.model.media.video import Video, decode_video
from tests import media, videos

PIXELS = ImageRules(min_pixels=28 * 28, max_pixels=28 * 28 * 64)
ALL = VideoRules(do_sample_frames=False)
MP4 = videos.encoded()


def shown(data: bytes, rules: VideoRules = ALL, pixels: ImageRules = PIXELS) -> Video:
    return decode_video(data, rules, pixels)


def assert_shows(video: Video, first: np.ndarray) -> None:
    """first: the first frame as a player shows it, uint8 [H, W, 3], before the resize."""
    assert torch.equal(video.frames[0], resized(first, *video.frames.shape[2:]))


def resized(pixels: np.ndarray, height: int, width: int) -> torch.Tensor:
    return resize(torch.from_numpy(pixels.copy()).permute(2, 0, 1), height, width)


# (a, b, c, d) of the matrix, what it does to the rows and columns, a word of the note.
ORIENTATIONS = {
    "upright": ((1, 0, 0, 1), lambda frame: frame, ""),
    "mirrored": ((-1, 0, 0, 1), lambda frame: frame[:, ::-1], "mirrored left to right"),
    "upside down": ((1, 0, 0, -1), lambda frame: frame[::-1], "mirrored top to bottom"),
    "180": ((-1, 0, 0, -1), lambda frame: frame[::-1, ::-1], "rotated by 180"),
    "90 clockwise": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1), "rotated by 270"),
    "90 counterclockwise": ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1), "rotated by 90"),
    "transposed": ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1), "mirrored"),
    "transposed the other way": (
        (0, -1, -1, 0), lambda frame: np.rot90(frame, 2).swapaxes(0, 1), "mirrored"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("scale", [1, 2.5])
def test_every_orientation(name, scale):
    numbers, change, note = ORIENTATIONS[name]
    video = shown(videos.with_matrix(MP4, [scale * number for number in numbers]))
    frame = change(media.all_frames(MP4)[0])
    assert_shows(video, frame)
    assert (video.source_height, video.source_width) == frame.shape[:2]
    assert note in " ".join(video.notes)
    assert bool(video.notes) == (name != "upright")


@pytest.mark.parametrize(
    ("degrees", "turns"), [(3, 0), (-20, 0), (44, 0), (46, -1), (100, -1), (-80, 1), (170, 2)]
)
def test_an_odd_angle_is_taken_to_the_nearest_quarter(degrees, turns):
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    video = shown(videos.with_matrix(MP4, (cosine, sine, -sine, cosine)))
    assert_shows(video, np.rot90(media.all_frames(MP4)[0], turns))
    assert "nearest quarter" in " ".join(video.notes)


def test_a_matrix_that_shows_nothing_is_ignored():
    orientation, note = matrix_orientation(bytes(36))
    assert orientation.note is None
    assert "ignored" in note


@pytest.mark.parametrize(
    ("shape", "size"),
    [("2:1", (48, 128)), ("1:2", (96, 64)), ("16:15", (48, 68)), ("10:1", (48, 640)),
     ("64:45", (48, 91)), ("8:9", (54, 64))],
)  # fmt: skip
@pytest.mark.parametrize("form", ["mp4", "matroska", "avi", "mpegts", "mov"])
def test_pixels_become_square_in_the_one_resize(form, shape, size):
    numerator, denominator = map(int, shape.split(":"))
    data = videos.encoded(form=form, pixel_shape=Fraction(numerator, denominator))
    video = shown(data)
    assert (video.source_height, video.source_width) == size
    assert video.frames.shape[2:] == PIXELS.size_of(*size)
    assert_shows(video, media.all_frames(data)[0])
    assert f"pixels of {shape} made square" in video.notes


@pytest.mark.parametrize("shape", [None, Fraction(1), Fraction(0, 1)])
def test_square_pixels_change_nothing(shape):
    assert Display.of((48, 64), shape).shown == (48, 64)
    assert not Display.of((48, 64), shape).size_notes


@pytest.mark.parametrize("shape", [Fraction(1, 1000), Fraction(1000), Fraction(11)])
def test_a_pixel_shape_that_makes_no_sense_is_ignored_and_told(shape):
    display = Display.of((48, 64), shape)
    assert display.shown == (48, 64)
    assert "ignored" in display.notes[0]


def test_the_limits_on_all_frames_see_square_pixels():
    data = videos.encoded(pixel_shape=Fraction(2))
    video = shown(data, VideoRules(num_frames=4, max_tokens=12))
    assert video.source_width == 128
    assert video.frames.shape[2] * video.frames.shape[3] <= 6 * 28 * 28


def test_a_turned_frame_of_wide_pixels():
    data = videos.with_matrix(videos.encoded(pixel_shape=Fraction(2)), (0, 1, -1, 0))
    video = shown(data)
    assert (video.source_height, video.source_width) == (128, 48)


def test_clean_aperture():
    video = shown(videos.with_clean_aperture(MP4, 40, 32, 4, -2))
    # 12 + 4 columns and 8 - 2 rows are left out before it.
    assert_shows(video, media.all_frames(MP4)[0][6:38, 16:56])
    assert "cropped by left 16, top 6, right 8, bottom 10" in video.notes


@pytest.mark.parametrize("size", [(64, 48), (70, 48), (0, 10)])
def test_a_clean_aperture_that_leaves_all_or_nothing(size):
    video = shown(videos.with_clean_aperture(MP4, *size, 0, 0))
    assert_shows(video, media.all_frames(MP4)[0])


def element(name: str, content: bytes) -> bytes:
    return bytes.fromhex(name) + b"\x08" + len(content).to_bytes(4, "big") + content


@pytest.mark.parametrize("names", [("54cc", "54bb", "54dd", "54aa"), ("54dd", "54aa")])
def test_matroska_crop(names):
    sides = dict(zip(("54cc", "54bb", "54dd", "54aa"), (16, 2, 8, 4), strict=True))
    crop = b"".join(element(name, sides[name].to_bytes(2, "big")) for name in names)
    sound = element("ae", element("83", b"\2"))
    picture = element("ae", element("83", b"\1") + element("e0", element("b0", b"\x40") + crop))
    tracks = element("1549a966", b"") + element("1654ae6b", sound + picture)
    data = element("1a45dfa3", b"") + b"\x18\x53\x80\x67\xff" + tracks
    found = container_crop(MediaFile.of(data), "matroska", 0, (48, 64))
    assert found == tuple(sides[name] if name in names else 0 for name in sides)
    assert container_crop(MediaFile.of(data), "matroska", 1, (48, 64)) == NO_CROP


def test_any_header_of_a_crop():
    for length in range(0, 60, 7):
        container_crop(MediaFile.of(b"\x18\x53\x80\x67" + bytes(length)), "matroska", 0, (1, 1))
        container_crop(MediaFile.of(MP4[: -300 + length]), "mov", 0, (1, 1))


@pytest.mark.parametrize(("transfer", "word"), [(16, "HDR (PQ)"), (18, "HDR (HLG)")])
def test_hdr_is_noted(transfer, word):
    data = videos.encoded(
        form="matroska", codec="libx265", options=videos.X265_QUIET, transfer=transfer,
        pixel_format="yuv420p10le",
    )  # fmt: skip
    assert word in " ".join(shown(data).notes)


def test_interlacing_is_noted():
    data = videos.encoded(form="mpegts", options={"x264-params": "tff=1"})
    assert "interlaced" in " ".join(shown(data).notes)


RGBA = [np.dstack([frame, np.full((48, 64), 64, np.uint8)]) for frame in videos.FRAMES]


@pytest.mark.parametrize(
    ("form", "codec", "pixel_format"),
    [("mov", "png", "rgba"), ("mov", "qtrle", "argb"), ("matroska", "ffv1", "bgra"),
     ("apng", "apng", "rgba")],
)  # fmt: skip
def test_transparency_is_laid_over_white(form, codec, pixel_format):
    data = videos.encoded(
        RGBA, form, codec, pixel_format, source_format="rgba", container_options={}
    )
    video = shown(data)
    expected = np.round(videos.FRAMES[0] * (64 / 255) + 255 * (191 / 255)).astype(np.uint8)
    difference = video.frames[0].int() - resized(expected, *video.frames.shape[2:]).int()
    assert difference.abs().max() <= 2
    assert "transparency laid over white" in video.notes


def test_transparency_that_no_decoder_gives_is_noted():
    data = videos.encoded(form="webm", codec="libvpx-vp9", pixel_format="yuva420p")
    assert "transparency of the video is not used" in shown(data).notes


# --- animated pictures

TIMES_MS = [100, 200, 300, 400]


def animated(form: str, times: list[int] = TIMES_MS, alpha: int = 255) -> bytes:
    frames = [Image.fromarray(np.dstack([frame, np.full((48, 64), alpha, np.uint8)]), "RGBA")
              for frame in videos.FRAMES[: len(times)]]  # fmt: skip
    file = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    options |= {"quality": 100} if form == "AVIF" else {}
    frames[0].save(
        file, form, save_all=True, append_images=frames[1:], duration=times, loop=0, **options
    )
    return file.getvalue()


@pytest.mark.parametrize("form", ["WEBP", "PNG", "GIF", "AVIF"])
def test_animated_pictures_at_their_own_times(form):
    video = shown(animated(form))
    assert video.times_s == pytest.approx((0, 0.1, 0.3, 0.6))
    assert video.total_frames / video.fps == pytest.approx(1.0)
    for number, frame in enumerate(videos.FRAMES[:4]):
        near = resized(frame, *video.frames.shape[2:]).int() - video.frames[number].int()
        assert near.abs().float().mean() < 12, (form, number)


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_a_window_of_an_animation(form):
    video = decode_video(animated(form), ALL, PIXELS, start_s=0.3, end_s=1.0)
    assert video.times_s == pytest.approx((0.3, 0.6))


def test_no_time_is_a_tenth_of_a_second_as_in_browsers():
    assert shown(animated("WEBP", [0, 5, 40])).times_s == pytest.approx((0, 0.1, 0.2))


@pytest.mark.parametrize("form", ["WEBP", "PNG"])
def test_transparency_of_animations(form):
    assert "transparency laid over white" in shown(animated(form, alpha=99)).notes


def test_a_cover_picture_is_not_the_video():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 200, 300, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width = 48, 64
        container.mux(cover.encode(av.VideoFrame.from_ndarray(media.draw(200, 300), "rgb24")))
        container.mux(cover.encode(None))
        for frame in videos.FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    video = shown(file.getvalue())
    assert (video.source_height, video.source_width, video.total_frames) == (48, 64, 8)
