"""Makes picture and video files of many kinds, valid and damaged, for tests.

Everything is drawn from a seed and encoded; no file is read.
"""

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def draw(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, channels]: coarse coloured tiles with a little noise."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, channels))
    pixels = np.kron(tiles, np.ones((8, 8, 1), np.int64))[:height, :width]
    return np.clip(pixels + rng.integers(-9, 10, pixels.shape), 0, 255).astype(np.uint8)


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    """Encodes a picture file."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def jpeg(
    height: int = 90, width: int = 120, seed: int = 0, orientation: int | None = None
) -> bytes:
    """Makes a JPEG file, with an EXIF orientation if one is given."""
    picture = Image.fromarray(draw(height, width, seed=seed))
    if orientation is None:
        return encode(picture, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture, "JPEG", exif=exif)


def animation(frames: int = 3, form: str = "GIF", height: int = 48, width: int = 64) -> bytes:
    """Makes an animated GIF, WebP or PNG of 10 frames a second."""
    pictures = [Image.fromarray(draw(height, width, seed=seed)) for seed in range(frames)]
    return encode(pictures[0], form, save_all=True, append_images=pictures[1:], duration=100)


def numbered_frames(
    count: int, height: int = 64, width: int = 96, seed: int = 0
) -> list[np.ndarray]:
    """Returns frames uint8 [height, width, 3], all different: a background and a moving bar."""
    background = draw(height, width, seed=seed)
    frames = []
    for index in range(count):
        frame = background.copy()
        left = index * (width - 12) // max(1, count - 1)
        frame[:, left : left + 12] = (250, 30 * (index % 8), 20)
        frames.append(frame)
    return frames


def video(
    frames: Sequence[np.ndarray],
    form: str = "mp4",
    codec: str = "libx264",
    rate: int = 10,
    timestamps: Sequence[int] | None = None,
    rotation: int = 0,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """Makes a video file.

    timestamps: of the frames in milliseconds, for a variable rate.
    rotation: in degrees, for the file's metadata.
    """
    # FFmpeg reads the file again to put its index first, so it has to be on disk.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video"
        with av.open(file, "w", format=form, options=container_options or {}) as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = pixel_format
            stream.thread_count = 1
            if timestamps is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            if rotation:
                stream.set_display_rotation(rotation)
            for index, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                if timestamps is not None:
                    frame.pts, frame.time_base = timestamps[index], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return file.read_bytes()


def audio_only(seconds: float = 0.5) -> bytes:
    """Makes an MP4 file with sound and without pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        samples = np.zeros((1, int(16000 * seconds)), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def all_frames(data: bytes) -> list[np.ndarray]:
    """Returns all frames as the decoder returns them: RGB, not rotated."""
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def all_times(data: bytes) -> list[float]:
    """Returns the seconds of all frames from the first one, as the decoder returns them."""
    with av.open(io.BytesIO(data)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    return [time - times[0] for time in times]


def with_packets_that_show_nothing(data: bytes, count: int = 3) -> bytes:
    """Returns an MKV with the same video, and behind it packets that decode to no frame."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="matroska") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        last = Fraction(0)
        for packet in source.demux(video=0):
            if packet.pts is not None:
                last = max(last, packet.pts * packet.time_base)
                packet.stream = stream
                container.mux(packet)
        for number in range(count):
            packet = av.Packet(bytes(20))
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = round(last * 1000) + 100 * (number + 1)
            container.mux(packet)
    return file.getvalue()


def cut(data: bytes, share: float = 0.6) -> bytes:
    """Returns the beginning of a file."""
    return data[: int(len(data) * share)]
