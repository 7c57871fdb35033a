"""Which videos get another summary after a retry of their windows."""

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.annotate.redone_windows import videos_to_redo
from mediamill.pipeline.storage import storage
from mediamill.schemas.conditions import parse_condition

ROWS = [  # video, run, attempt, status
    ("a", "new", 2, "ok"),
    ("a", "new", 1, "ok"),
    ("b", "new", 1, "ok"),  # a new video
    ("c", "new", 2, "error"),
    ("d", "old", 2, "ok"),
    ("e'", "new", 3, "ok"),
]


def test_videos_whose_failed_windows_were_answered(tmp_path):
    names = ("video_id", "run_id", "attempt", "status")
    table = pa.table(dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "part-1.parquet")
    windows = storage.resolve(str(tmp_path))
    assert videos_to_redo(windows, "other") is None
    condition = videos_to_redo(windows, "new")
    videos = pa.table({"id": ["a", "b", "c", "d", "e'"], "failed_windows": [1, 1, 1, 1, 2]})
    chosen = videos.filter(parse_condition(condition, videos.schema))
    assert chosen["id"].to_pylist() == ["a", "e'"]
