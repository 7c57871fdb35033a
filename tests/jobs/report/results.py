"""Outputs of a job as files, with receipts of real media, for the tests of pages."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mediamill.model.processor import Processor
from mediamill.model.tiny import CHECKPOINT
from mediamill.model.tiny.encode import clip_bytes, picture_bytes
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.result import result_schema

MANIFEST = pa.schema(
    [("id", pa.string()), ("uri", pa.string()), ("kind", pa.string()), ("truth", pa.string())]
)
HOSTILE = (
    "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>'\"`{{7*7}}&lt;\u202e"
)


def row(**values: Any) -> dict[str, Any]:
    """An ok row, with the receipt of its `uri` if this is a file of media."""
    ok = {
        "status": "ok",
        "attempt": 1,
        "finish_reason": "stop",
        "prompt_tokens": 40,
        "visual_tokens": 12,
        "output_tokens": 7,
        "mean_logprob": -0.25,
        "model": str(CHECKPOINT),
        "fingerprint": "f1f2f3f4f5f6f7f8f9",
        "run_id": "run-1",
    }
    uri = str(values.get("uri"))
    seen = receipt(uri) if uri.startswith("/") and Path(uri).exists() else None
    if seen is not None:
        ok |= {"height": seen["height"], "width": seen["width"], "receipt": [seen]}
        ok["frame_times_s"] = seen["frame_times_s"]
    return dict.fromkeys(result_schema(_manifest()).names) | ok | values


def failed(**values: Any) -> dict[str, Any]:
    unknown = dict.fromkeys(("text", "visual_tokens", "output_tokens", "mean_logprob"))
    return row(status="error", **{**unknown, "receipt": None, **values})


@cache
def receipt(uri: str) -> dict[str, Any]:
    _, seen = Processor.load(CHECKPOINT).prepare_media(Path(uri))
    values = asdict(seen)
    return {**values, "type": values.pop("kind"), "uri": uri}


def write_result(
    folder: Path, rows: list[dict[str, Any]], partitioned: bool = True, **extra: pa.DataType
) -> str:
    """extra: further columns."""
    schema = result_schema(_manifest())
    for name, kind in extra.items():
        schema = schema.append(pa.field(name, kind))
    table = pa.Table.from_pylist(rows, schema=schema)
    kind = ds.partitioning(pa.schema([("kind", pa.string())]), flavor="hive")
    ds.write_dataset(table, folder, format="parquet", partitioning=kind if partitioned else None)
    return str(folder)


def picture_file(folder: Path) -> str:
    path = folder / "picture.png"
    path.write_bytes(picture_bytes(np.full((300, 400, 3), (220, 40, 40), np.uint8), "png"))
    return str(path)


def clip_file(folder: Path) -> str:
    path = folder / "clip.mp4"
    shades = [np.full((160, 240, 3), shade, np.uint8) for shade in range(0, 240, 10)]
    path.write_bytes(clip_bytes(tuple(shades)))
    return str(path)


def _manifest() -> Any:
    return check_manifest_schema(MANIFEST, "the test's manifest")
