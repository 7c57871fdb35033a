"""Makes one small valid file of every supported format, as a start for mutations."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import av
import numpy as np
from PIL import Image

from tests import media


@dataclass(frozen=True)
class Sample:
    """A valid file. video: it is read as a video, which has to be asked for with a GIF."""

    name: str
    data: bytes
    video: bool = False


def _picture(mode: str, form: str, **options: object) -> bytes:
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "P": 1, "1": 1, "LA": 2}[mode]
    pixels = media.draw(47, 61, channels, seed=len(form) + channels)
    if mode == "P":
        picture = Image.fromarray(media.draw(47, 61)).quantize(17)
    elif mode == "1":
        picture = Image.fromarray(pixels[..., 0]).convert("1")
    elif mode == "L":
        picture = Image.fromarray(pixels[..., 0])
    else:
        picture = Image.frombytes(mode, (61, 47), pixels.tobytes())
    return media.encode(picture, form, **options)


def _grey16() -> bytes:
    values = np.arange(47 * 61, dtype=np.uint16).reshape(47, 61) * 22
    return media.encode(Image.fromarray(values), "PNG")


def _with_texts() -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "said " * 40, zip=True)
    info.add_itxt("Title", "drawn", "en", "Title", zip=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(media.draw(47, 61))
    return media.encode(picture, "PNG", pnginfo=info, exif=exif, icc_profile=b"icc" * 50)


PICTURES: dict[str, Callable[[], bytes]] = {
    "JPEG baseline": lambda: media.jpeg(47, 61),
    "JPEG progressive": lambda: _picture("RGB", "JPEG", progressive=True),
    "JPEG grey restarts": lambda: _picture("L", "JPEG", restart_marker_blocks=2),
    "JPEG CMYK": lambda: _picture("CMYK", "JPEG"),
    "JPEG EXIF": lambda: media.jpeg(47, 61, orientation=6),
    "PNG RGB": lambda: _picture("RGB", "PNG"),
    "PNG RGBA": lambda: _picture("RGBA", "PNG"),
    "PNG palette": lambda: _picture("P", "PNG"),
    "PNG 1 bit": lambda: _picture("1", "PNG"),
    "PNG 16 bit": _grey16,
    "PNG texts": _with_texts,
    "APNG": lambda: media.animation(form="PNG"),
    "GIF": lambda: _picture("P", "GIF"),
    "GIF animated": lambda: media.animation(),
    "WebP": lambda: _picture("RGB", "WEBP"),
    "WebP lossless": lambda: _picture("RGBA", "WEBP", lossless=True),
    "WebP animated": lambda: media.animation(form="WEBP"),
    "WebP EXIF": lambda: media.encode(
        Image.fromarray(media.draw(47, 61)), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"
    ),
    "BMP": lambda: _picture("RGB", "BMP"),
    "BMP palette": lambda: _picture("P", "BMP"),
    "TIFF": lambda: _picture("RGB", "TIFF"),
    "TIFF LZW": lambda: _picture("RGB", "TIFF", compression="tiff_lzw"),
    "TIFF deflate": lambda: _picture("RGBA", "TIFF", compression="tiff_adobe_deflate"),
    "TIFF JPEG": lambda: _picture("RGB", "TIFF", compression="jpeg"),
    "TIFF fax": lambda: _picture("1", "TIFF", compression="group4"),
    "TIFF big": lambda: _picture("L", "TIFF", big_tiff=True),
    "TIFF pages": lambda: media.animation(form="TIFF"),
    "AVIF": lambda: _picture("RGB", "AVIF"),
    "AVIF animated": lambda: media.animation(form="AVIF"),
}

# name -> container, codec, pixel format, options of the encoder, options of the container
_VIDEOS: dict[str, tuple[str, str, str, dict[str, str], dict[str, str]]] = {
    "MP4 H.264": ("mp4", "libx264", "yuv420p", {"g": "4", "bf": "2"}, {}),
    "MP4 fragmented": (
        "mp4",
        "libx264",
        "yuv420p",
        {"g": "4", "bf": "0"},
        {"movflags": "frag_keyframe+empty_moov"},
    ),
    "MP4 HEVC": ("mp4", "libx265", "yuv420p", {"x265-params": "log-level=none"}, {}),
    "MP4 AV1": ("mp4", "libsvtav1", "yuv420p", {"svtav1-params": "preset=12"}, {}),
    "MP4 MPEG-4": ("mp4", "mpeg4", "yuv420p", {"g": "4"}, {}),
    "MOV H.264 4:4:4": ("mov", "libx264", "yuv444p", {"g": "3"}, {}),
    "MOV MJPEG": ("mov", "mjpeg", "yuvj420p", {}, {}),
    "MOV ProRes": ("mov", "prores", "yuv422p10le", {}, {}),
    "MOV PNG": ("mov", "png", "rgb24", {}, {}),
    "MKV H.264": ("matroska", "libx264", "yuv420p", {"g": "4"}, {}),
    "MKV FFV1": ("matroska", "ffv1", "yuv420p", {}, {}),
    "WebM VP8": ("webm", "libvpx", "yuv420p", {"g": "4"}, {}),
    "WebM VP9": ("webm", "libvpx-vp9", "yuv420p", {"g": "4"}, {}),
    "WebM AV1": ("webm", "libsvtav1", "yuv420p", {"svtav1-params": "preset=12"}, {}),
    "AVI MPEG-4": ("avi", "mpeg4", "yuv420p", {"g": "4"}, {}),
    "AVI MJPEG": ("avi", "mjpeg", "yuvj420p", {}, {}),
    "AVI raw": ("avi", "rawvideo", "bgr24", {}, {}),
    "TS H.264": ("mpegts", "libx264", "yuv420p", {"g": "4"}, {}),
    "TS HEVC": ("mpegts", "libx265", "yuv420p", {"x265-params": "log-level=none"}, {}),
    "TS MPEG-2": ("mpegts", "mpeg2video", "yuv420p", {"g": "4"}, {}),
    "PS MPEG-2": ("vob", "mpeg2video", "yuv420p", {"g": "4"}, {}),
    "FLV H.264": ("flv", "libx264", "yuv420p", {"g": "4"}, {}),
    "FLV Sorenson": ("flv", "flv", "yuv420p", {"g": "4"}, {}),
    "ASF WMV2": ("asf", "wmv2", "yuv420p", {"g": "4"}, {}),
}


def samples() -> list[Sample]:
    """Returns all samples; they are the same at each call."""
    pictures = [Sample(name, draw()) for name, draw in PICTURES.items()]
    frames = media.numbered_frames(9, 64, 96)
    av.logging.set_level(None)  # some encoders write to the terminal
    videos = [
        Sample(name, media.video(frames, form, codec, 10, None, 0, pixels, options, settings), True)
        for name, (form, codec, pixels, options, settings) in _VIDEOS.items()
    ]
    return [*pictures, *videos, Sample("GIF as video", media.animation(6), True), _with_sound()]


def _with_sound() -> Sample:
    """Makes an MP4 with two interleaved streams."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=10, options={"g": "4"})
        video.height, video.width, video.pix_fmt, video.thread_count = 64, 96, "yuv420p", 1
        audio = container.add_stream("aac", rate=16000, layout="mono")
        for index, pixels in enumerate(media.numbered_frames(9, 64, 96)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            sound = av.AudioFrame.from_ndarray(
                np.full((1, 1600), index / 20, np.float32), format="fltp", layout="mono"
            )
            sound.sample_rate, sound.pts = 16000, 1600 * index
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return Sample("MP4 with sound", file.getvalue(), True)
