"""Turns drawn scenes into real media files, five of them broken, and a manifest that lists them.

Every file is the same at each run: scene n is drawn from (SEED, n). Knows nothing of captioning.
"""

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from model.tiny.scenes import Kind, Scene, draw_clip, draw_picture

SEED = 20
PICTURES = 200
CLIPS = 40
BROKEN_FILES = 5
BROKEN = "broken"  # the kind of the rows that cannot be captioned

PICTURE_KINDS: tuple[Kind, ...] = ("one", "two", "three", "word")
FORMATS = ("jpg", "png", "webp")
# Square, 4:3 and 3:4 pictures and square, 3:2 and 2:3 clips: the shapes that the tiny model knows.
PICTURE_SIZES = ((400, 300), (336, 336), (300, 400))
CLIP_SIZES = ((360, 240), (288, 288), (240, 360))
CLIP_SECONDS = (2, 3, 4)
CLIP_RATE = 12
SUPERSAMPLE = 2

MANIFEST_SCHEMA = pa.schema(
    [("id", pa.string()), ("uri", pa.string()), ("kind", pa.string()), ("truth", pa.string())]
)
MANIFEST_FILES = 2


@dataclass(frozen=True)
class Row:
    """One row of the manifest. truth: the right caption; None for a broken file."""

    id: str
    uri: str
    kind: str
    truth: str | None


def draw(folder: Path, pictures: int = PICTURES, clips: int = CLIPS) -> bool:
    """Make folder/media and folder/manifest; False if they were there already, whole.

    Beside the pictures and clips there are always BROKEN_FILES rows that cannot be captioned.

    The manifest is written last, so that all it lists is there, but for the missing object.
    """
    media, manifest = folder.resolve() / "media", folder / "manifest"
    if _is_drawn(manifest, media, pictures + clips + BROKEN_FILES):
        return False
    media.mkdir(parents=True, exist_ok=True)
    manifest.mkdir(parents=True, exist_ok=True)
    rows = [*_scenes(media, pictures, clips), *_broken(media, pictures + clips)]
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=MANIFEST_SCHEMA)
    each = -(-len(rows) // MANIFEST_FILES)
    for part in range(MANIFEST_FILES):
        unfinished = manifest / f".part-{part}.parquet"
        pq.write_table(table.slice(part * each, each), unfinished)
        unfinished.replace(manifest / f"part-{part}.parquet")
    return True


def picture_bytes(pixels: np.ndarray, extension: str) -> bytes:
    """uint8 [H, W, 3] as a JPEG, PNG or WebP file."""
    file = io.BytesIO()
    options = {"jpg": ("JPEG", 90), "png": ("PNG", None), "webp": ("WEBP", 88)}
    name, quality = options[extension]
    Image.fromarray(pixels).save(file, name, **({"quality": quality} if quality else {}))
    return file.getvalue()


def clip_bytes(frames: tuple[np.ndarray, ...]) -> bytes:
    """uint8 [H, W, 3] frames (even sides) at CLIP_RATE a second as an H.264 MP4 file."""
    file = io.BytesIO()
    height, width = frames[0].shape[:2]
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=CLIP_RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # One thread, so that the bytes do not depend on the machine's number of cores.
        stream.options = {"crf": "18", "preset": "fast", "threads": "1"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def _is_drawn(manifest: Path, media: Path, expected: int) -> bool:
    parts = [manifest / f"part-{part}.parquet" for part in range(MANIFEST_FILES)]
    if not all(part.exists() for part in parts):
        return False
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    absent = [row for row in rows if not Path(row["uri"]).exists()]
    return (
        len(rows) == expected
        and len(absent) == 1
        and all(Path(row["uri"]).parent == media for row in rows)
    )


def _scenes(media: Path, pictures: int, clips: int) -> Iterator[Row]:
    """Pictures of all kinds and formats in turn, with the clips spread evenly among them."""
    total, drawn = pictures + clips, 0
    for number in range(total):
        rng = np.random.default_rng((SEED, number))
        name = f"{number + 1:03}"
        if -(-number * clips // total) < -(-(number + 1) * clips // total):
            scene, data = _clip(rng)
            path = media / f"{name}-clip.mp4"
        else:
            kind, extension = (
                PICTURE_KINDS[drawn % len(PICTURE_KINDS)],
                FORMATS[drawn % len(FORMATS)],
            )
            drawn += 1
            scene, data = _picture(rng, kind, extension)
            path = media / f"{name}-{kind}.{extension}"
        path.write_bytes(data)
        yield Row(path.stem, str(path), scene.kind, scene.caption)


def _clip(rng: np.random.Generator) -> tuple[Scene, bytes]:
    width, height = CLIP_SIZES[int(rng.integers(len(CLIP_SIZES)))]
    frames = int(rng.choice(CLIP_SECONDS)) * CLIP_RATE
    scene = draw_clip(rng, width, height, frames, supersample=SUPERSAMPLE)
    return scene, clip_bytes(scene.frames)


def _picture(rng: np.random.Generator, kind: Kind, extension: str) -> tuple[Scene, bytes]:
    width, height = PICTURE_SIZES[int(rng.integers(len(PICTURE_SIZES)))]
    scene = draw_picture(rng, kind, width, height, supersample=SUPERSAMPLE)
    return scene, picture_bytes(scene.frames[0], extension)


def _broken(media: Path, before: int) -> Iterator[Row]:
    """BROKEN_FILES files as every large collection has them; the last one does not exist."""
    rng = np.random.default_rng((SEED, before))
    _, jpeg = _picture(rng, "two", "jpg")
    _, clip = _clip(rng)
    files: dict[str, bytes | None] = {
        "cut-off.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "text.jpg": b"This is a line of text in a file with a picture's name.\n",
        "cut-off.mp4": clip[: len(clip) // 2],
        "missing.webp": None,
    }
    for number, (name, data) in enumerate(files.items(), start=before + 1):
        path = media / f"{number:03}-{name}"
        if data is not None:
            path.write_bytes(data)
        yield Row(path.stem, str(path), BROKEN, None)
