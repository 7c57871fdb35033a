"""Encodes synthetic scenes as media files: JPEG, PNG and WebP pictures, H.264 MP4 clips."""

import io
from typing import Literal

import av
import numpy as np
from PIL import Image

from mediamill.model.tiny.scenes import Kind, Scene, draw_clip, draw_picture

Extension = Literal["jpg", "png", "webp"]
EXTENSIONS: tuple[Extension, ...] = ("jpg", "png", "webp")
# (width, height): the aspect ratios on which the tiny model is trained.
PICTURE_SIZES = ((400, 300), (336, 336), (300, 400))
CLIP_SIZES = ((384, 256), (288, 288), (256, 384))
CLIP_SECONDS = (2, 3, 4)
CLIP_RATE = 12
SUPERSAMPLE = 2


def picture_file(rng: np.random.Generator, kind: Kind, extension: Extension) -> tuple[Scene, bytes]:
    """Draws a picture of a kind. Returns the scene and the file."""
    width, height = PICTURE_SIZES[int(rng.integers(len(PICTURE_SIZES)))]
    scene = draw_picture(rng, kind, width, height, SUPERSAMPLE)
    return scene, picture_bytes(scene.frames[0], extension)


def clip_file(rng: np.random.Generator) -> tuple[Scene, bytes]:
    """Draws a clip of two to four seconds. Returns the scene and the file."""
    width, height = CLIP_SIZES[int(rng.integers(len(CLIP_SIZES)))]
    frames = int(rng.choice(CLIP_SECONDS)) * CLIP_RATE
    scene = draw_clip(rng, width, height, frames, SUPERSAMPLE)
    return scene, clip_bytes(scene.frames)


def picture_bytes(pixels: np.ndarray, extension: Extension) -> bytes:
    """Encodes uint8 [H, W, 3] as a JPEG, PNG or WebP file."""
    file = io.BytesIO()
    name = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension]
    quality = {} if extension == "png" else {"quality": 90}
    Image.fromarray(pixels).save(file, name, **quality)
    return file.getvalue()


def clip_bytes(frames: tuple[np.ndarray, ...]) -> bytes:
    """Encodes frames uint8 [H, W, 3] (even sides) as an H.264 MP4 file of CLIP_RATE a second."""
    file = io.BytesIO()
    height, width = frames[0].shape[:2]
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=CLIP_RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # With one thread the bytes do not depend on the number of cores.
        stream.options = {"crf": "18", "preset": "fast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
