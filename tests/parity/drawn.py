"""Draws picture and video files of every kind from a random generator, for the parity suite."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
import torch
from PIL import Image, ImageOps

from tests import media

Draw = Callable[[np.random.Generator], bytes]

# Sides that round to different multiples, single pixels, and shapes near the limit of 200 to 1.
ODD_SIDES = [
    (1, 1),
    (1, 200),
    (14, 14),
    (42, 42),
    (70, 98),
    (13, 700),
    (399, 2),
    (27, 29),
    (57, 171),
]


def _array(rng: np.random.Generator, channels: int = 3) -> np.ndarray:
    if rng.random() < 0.4:
        height, width = ODD_SIDES[rng.integers(len(ODD_SIDES))]
    else:
        height, width = (int(side) for side in rng.integers(8, 320, 2))
    return media.draw(height, width, channels, seed=int(rng.integers(2**31)))


def _rgb(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(_array(rng))


def _rgba(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(_array(rng, 4))


def _file(form: str, picture: Callable[[np.random.Generator], Image.Image], **options) -> Draw:
    return lambda rng: media.encode(picture(rng), form, **options)


def _as(mode: str) -> Callable[[np.random.Generator], Image.Image]:
    return lambda rng: _rgb(rng).convert(mode)


def _turned(rng: np.random.Generator) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(2, 9))
    form = ("JPEG", "PNG", "TIFF", "WEBP")[rng.integers(4)]
    return media.encode(_rgb(rng), form, exif=exif)


def _palette_with_transparency(rng: np.random.Generator) -> bytes:
    shades = rng.integers(0, 256, 32).astype(np.uint8).tobytes()
    return media.encode(_rgb(rng).quantize(32), "PNG", transparency=shades)


def _colour_key(rng: np.random.Generator) -> bytes:
    picture = _rgb(rng)
    return media.encode(picture, "PNG", transparency=picture.getpixel((0, 0)))


def _grey_key(rng: np.random.Generator) -> bytes:
    return media.encode(_as("L")(rng), "PNG", transparency=int(rng.integers(256)))


def _animation(form: str) -> Draw:
    return lambda rng: media.animation(
        int(rng.integers(2, 5)), form, *(int(side) for side in rng.integers(20, 120, 2))
    )


PICTURES: dict[str, Draw] = {
    "JPEG RGB": _file("JPEG", _rgb, quality=80),
    "JPEG RGB 4:4:4": _file("JPEG", _rgb, subsampling=0, progressive=True),
    "JPEG L": _file("JPEG", _as("L")),
    "JPEG CMYK": _file("JPEG", _as("CMYK")),
    "any format, turned by EXIF": _turned,
    "PNG RGB": _file("PNG", _rgb),
    "PNG 1": _file("PNG", _as("1")),
    "PNG L": _file("PNG", _as("L")),
    "PNG LA": _file("PNG", lambda rng: _rgba(rng).convert("LA")),
    "PNG RGBA": _file("PNG", _rgba),
    "PNG P": _file("PNG", lambda rng: _rgb(rng).quantize(int(rng.integers(2, 200)))),
    "PNG P with tRNS": _palette_with_transparency,
    "PNG RGB with tRNS": _colour_key,
    "PNG L with tRNS": _grey_key,
    "animated PNG": _animation("PNG"),
    "WebP RGB": _file("WEBP", _rgb),
    "WebP RGBA": _file("WEBP", _rgba, lossless=True),
    "animated WebP": _animation("WEBP"),
    "GIF P": _file("GIF", lambda rng: _rgb(rng).quantize(64)),
    "animated GIF": _animation("GIF"),
    "BMP RGB": _file("BMP", _rgb),
    "BMP P": _file("BMP", lambda rng: _rgb(rng).quantize(16)),
    "TIFF RGB": _file("TIFF", _rgb),
    "TIFF RGBA": _file("TIFF", _rgba, compression="tiff_adobe_deflate"),
    "TIFF CMYK": _file("TIFF", _as("CMYK")),
    "TIFF LAB": _file("TIFF", _as("LAB")),
    "AVIF RGB": _file("AVIF", _rgb),
}

CONTAINERS = {
    "mp4 h264": {},
    "mp4 h264 fragmented": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mp4 h264 B-frames": {"options": {"bf": "6", "g": "30"}},
    # With its lookahead or B-frames, this encoder writes beyond its memory now and then.
    "mp4 h265": {
        "codec": "libx265",
        "options": {
            "x265-params": "log-level=none:pools=none:frame-threads=1:bframes=0:rc-lookahead=0"
        },
    },
    "mov h264": {"form": "mov"},
    "mkv h264": {"form": "matroska"},
    "webm vp9": {"form": "webm", "codec": "libvpx-vp9"},
    "avi mpeg4": {"form": "avi", "codec": "mpeg4"},
    "mpeg-ts h264": {"form": "mpegts"},
    "mpeg-ps mpeg2": {"form": "mpeg", "codec": "mpeg2video"},
    "flv": {"form": "flv", "codec": "flv"},
    "wmv": {"form": "asf", "codec": "wmv2"},
}
# Rates that the old codecs take too.
RATES = (24, 25, 30, 50, 60)


def _video(options: dict) -> Draw:
    def draw(rng: np.random.Generator) -> bytes:
        rate = int(RATES[rng.integers(len(RATES))])
        seconds = float(rng.choice([0.1, 0.5, 1.0, 2.3, 4.1]))
        height, width = (2 * int(side) for side in rng.integers(20, 60, 2))
        count = max(1, int(seconds * rate))
        frames = media.numbered_frames(count, height, width, seed=int(rng.integers(2**31)))
        return media.video(frames, **{"rate": rate, **options})

    return draw


def _turned_video(rng: np.random.Generator) -> bytes:
    count, rotation = int(rng.integers(3, 30)), int(rng.choice([90, 180, 270]))
    return media.video(media.numbered_frames(count, 64, 96), rotation=rotation)


def _variable_rate(rng: np.random.Generator) -> bytes:
    timestamps = np.cumsum(rng.integers(20, 400, int(rng.integers(5, 24)))).tolist()
    frames = media.numbered_frames(len(timestamps), 48, 80, seed=int(rng.integers(2**31)))
    return media.video(frames, timestamps=[timestamp - timestamps[0] for timestamp in timestamps])


VIDEOS: dict[str, Draw] = {
    **{name: _video(options) for name, options in CONTAINERS.items()},
    "mp4 h264 turned": _turned_video,
    "mp4 h264 variable rate": _variable_rate,
}


def reference_picture(data: bytes) -> Image.Image:
    """What the reference is given for a picture file: an upright PIL picture of its own mode."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return ImageOps.exif_transpose(picture)


@dataclass(frozen=True)
class ReferenceVideo:
    """All frames of a video, uint8 [T, 3, H, W] upright, and its frames per second."""

    frames: torch.Tensor
    fps: float


def reference_video(data: bytes) -> ReferenceVideo:
    """What the reference is given for a video file, by the plainest decode there is.

    The rate is the number of frames over the time from the first one to the end of the last.
    """
    frames, starts, ends = [], [], []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4)
            frames.append(turned.transpose(2, 0, 1).copy())
            starts.append(frame.pts)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        unit, rate = stream.time_base, stream.average_rate
        for packet in container.demux(stream):
            if packet.pts is not None:
                ends.append(packet.pts + (packet.duration or 0))
    end = max(ends)
    if end <= max(starts):  # a file that tells no durations: the last frame lasts as the mean one
        spans = len(starts) - 1
        step = (max(starts) - min(starts)) / spans if spans else 1 / (rate * unit)
        end = max(starts) + max(1, round(step))
    return ReferenceVideo(
        torch.from_numpy(np.stack(frames)), len(frames) / float((end - min(starts)) * unit)
    )
