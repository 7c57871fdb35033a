"""Small manifests with real pictures, jobs for them, and a look at what came out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.schemas.job import JobConfig, load_job
from tests.media import jpeg, numbered_frames, video

PICTURES = 6  # different ones; many rows share one


def draw_media(folder: Path) -> dict[str, Path]:
    """Sound and broken files by name: picture-0 to picture-5, clip, truncated, empty, text."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {f"picture-{i}.jpg": jpeg(56, 84, seed=i) for i in range(PICTURES)}
    contents["clip.mp4"] = video(numbered_frames(6, 56, 56))
    contents["truncated.jpg"] = jpeg(56, 84)[:500]
    contents["empty.jpg"] = b""
    contents["text.jpg"] = b"no picture at all"
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name.partition(".")[0]: folder / name for name in contents}


def picture_rows(media: dict[str, Path], count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": f"row-{number:05}",
            "uri": str(media[f"picture-{number % PICTURES}"]),
            "kind": "abc"[number % 3],
        }
        for number in range(first, first + count)
    ]


def write_manifest(path: Path, rows: Sequence[dict[str, Any]] | pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))
    pq.write_table(table, path, **options)
    return path


def make_job(manifest: object, output: object, **changes: Any) -> JobConfig:
    """A caption job with the tiny checkpoint and short answers; `changes` have dotted names with
    two underscores for the dot.
    """
    settings: dict[str, Any] = {
        "job": "caption",
        "manifest": str(manifest),
        "output": str(output),
        "model": str(CHECKPOINT),
        "prompt": CAPTION_PROMPT,
        "generation.max_new_tokens": 6,
        "resources.batch_rows": 8,
    }
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return load_job(None, {name: value for name, value in settings.items() if value is not None})


def read_output(output: Path | str, filesystem: Any = None) -> list[dict[str, Any]]:
    """All rows that a reader of the dataset sees, by id."""
    path = str(output)
    if filesystem is not None:
        path = path.removeprefix("s3://")
    table = pads.dataset(path, filesystem=filesystem, format="parquet", partitioning="hive")
    rows = table.to_table().to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


def assert_each_once(rows: Sequence[dict[str, Any]], ids: Sequence[object]) -> None:
    counts = Counter(row["id"] for row in rows)
    assert not {key: number for key, number in counts.items() if number != 1}
    assert set(counts) == set(ids)
