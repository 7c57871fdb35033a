"""Draws the demo's pictures and clips, five of them broken, and writes their manifest.

Scene n is drawn from the seed (SEED, n), so it is the same at each run. So are the files, except
clips: the video encoder is not deterministic.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.model.tiny.encode import EXTENSIONS, clip_file, picture_file
from mediamill.model.tiny.scenes import Kind

SEED = 20
PICTURES = 200
CLIPS = 40
BROKEN_FILES = 5
BROKEN = "broken"  # the kind of the rows that cannot be captioned

PICTURE_KINDS: tuple[Kind, ...] = ("one", "two", "three", "word")

MANIFEST_SCHEMA = pa.schema(
    [("id", pa.string()), ("uri", pa.string()), ("kind", pa.string()), ("truth", pa.string())]
)
MANIFEST_FILES = 2


@dataclass(frozen=True)
class DrawnRow:
    """One row of the manifest. truth: the expected caption; None for a broken file."""

    id: str
    uri: str
    kind: str
    truth: str | None


def draw(folder: Path, pictures: int = PICTURES, clips: int = CLIPS) -> bool:
    """Writes folder/media and folder/manifest. Returns False if they exist already, complete.

    The manifest also lists BROKEN_FILES broken media. It is written last, when all other files
    exist.
    """
    media, manifest = folder.resolve() / "media", folder / "manifest"
    if _is_drawn(manifest, media, pictures + clips + BROKEN_FILES):
        return False
    media.mkdir(parents=True, exist_ok=True)
    manifest.mkdir(parents=True, exist_ok=True)
    rows = [*_scenes(media, pictures, clips), *_broken(media, pictures + clips)]
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=MANIFEST_SCHEMA)
    rows_per_file = -(-len(rows) // MANIFEST_FILES)
    for part in range(MANIFEST_FILES):
        unfinished = manifest / f".part-{part}.parquet"
        pq.write_table(table.slice(part * rows_per_file, rows_per_file), unfinished)
        unfinished.replace(manifest / f"part-{part}.parquet")
    return True


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


def _scenes(media: Path, pictures: int, clips: int) -> Iterator[DrawnRow]:
    """Draws pictures of all kinds and formats in turn, and clips spread evenly among them."""
    total, drawn = pictures + clips, 0
    for number in range(total):
        rng = np.random.default_rng((SEED, number))
        name = f"{number + 1:03}"
        if -(-number * clips // total) < -(-(number + 1) * clips // total):
            scene, data = clip_file(rng)
            path = media / f"{name}-clip.mp4"
        else:
            kind = PICTURE_KINDS[drawn % len(PICTURE_KINDS)]
            extension = EXTENSIONS[drawn % len(EXTENSIONS)]
            drawn += 1
            scene, data = picture_file(rng, kind, extension)
            path = media / f"{name}-{kind}.{extension}"
        path.write_bytes(data)
        yield DrawnRow(path.stem, str(path), scene.kind, scene.caption)


def _broken(media: Path, before: int) -> Iterator[DrawnRow]:
    """Writes broken files such as large collections have; the last of them does not exist."""
    rng = np.random.default_rng((SEED, before))
    _, jpeg = picture_file(rng, "two", "jpg")
    _, clip = clip_file(rng)
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
        yield DrawnRow(path.stem, str(path), BROKEN, None)
