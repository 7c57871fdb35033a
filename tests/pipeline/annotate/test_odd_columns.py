"""The user's columns pass through the steps of an annotation without becoming Python objects."""

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.annotate.merge_videos import merge
from mediamill.pipeline.annotate.video_table import plain_table
from mediamill.pipeline.annotate.window_columns import split_schema, window_schema
from mediamill.pipeline.annotate.window_manifest import make_windows
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.storage import storage
from mediamill.schemas.arrow_convert import convert_table
from mediamill.schemas.task import CAPTION
from tests.pipeline.odd_columns import BROKEN
from tests.pipeline.odd_columns import COLUMNS as ODD
from tests.pipeline.test_odd_tables import assert_equal, write_table

COLUMNS = {f"c {name}": column for name, column in ODD.items()}  # `duration_s` is a video's


def test_columns_of_any_type_stay_in_windows_and_videos(tmp_path):
    path = write_table(tmp_path / "m.parquet", prompt=BROKEN, **COLUMNS)
    manifest = open_manifest(str(path)).schema
    rows = pq.read_table(path)
    windows = [[{"start_s": 0.0, "end_s": 1.0}, {"start_s": 1.0, "end_s": 2.0}]] * 5 + [None]
    split = rows.set_column(1, "uri", pa.chunked_array([BROKEN]))
    split = split.append_column("windows", pa.array(windows))
    split = split.append_column("duration_s", pa.array([2.0] * 5 + [None]))
    split = split.append_column("status", pa.array(["ok"] * 5 + ["error"]))
    split = split.append_column("error_code", pa.array([None] * 5 + ["fetch_not_found"]))
    places = {name: tmp_path / name for name in ("split", "_manifest", "windows", "videos")}
    for place in places.values():
        place.mkdir()
    pq.write_table(convert_table(split, split_schema(manifest)), places["split"] / "f.parquet")
    place = {name: storage.resolve(str(path)) for name, path in places.items()}
    assert make_windows(place["split"], place["_manifest"], manifest) == 1
    made = pq.read_table(places["_manifest"] / "f.parquet")
    assert made.num_rows == 11
    uris = [row[0]["uri"] for row in made["media"].to_pylist() if row]
    assert uris.count("ok") == 2
    for name in ("prompt", *COLUMNS):
        pieces = [rows[name].slice(min(n // 2, 5), 1) for n in range(11)]
        expected = pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks])
        assert_equal(made[name], expected, name)
    answered = made.append_column("text", pa.array(["t"] * 11))
    answered = answered.append_column("status", pa.array(["ok"] * 11))
    schema = pa.schema(
        [*window_schema(manifest), ("text", pa.string()), ("status", pa.string()),
         ("error_code", pa.string()), ("error_message", pa.string())]
    )  # fmt: skip
    pq.write_table(convert_table(answered, schema), places["windows"] / "f.parquet")
    table = plain_table(manifest, CAPTION)
    assert merge(place["split"], place["windows"], place["videos"], table) == 6
    (file,) = places["videos"].glob("part-*.parquet")
    videos = pq.read_table(file)
    assert videos["windows"].to_pylist() == [2] * 5 + [1]
    for name in COLUMNS:
        assert_equal(videos[name], rows[name], name)
