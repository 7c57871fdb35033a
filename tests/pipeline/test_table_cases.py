"""Small tables that people met, from public reports: what the plan of a job says about each."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.plan import check
from mediamill.pipeline.row_values import with_unreadable_values
from mediamill.pipeline.stages.read import plan_splits, read_split
from mediamill.schemas.errors import JobError
from tests.pipeline.odd_columns import FAR_US, raw
from tests.pipeline.stages.test_read import ledger_of, read_all
from tests.pipeline.test_odd_tables import result_of
from tests.pipeline.world import make_job

TWO = {"id": ["1", "2"], "uri": ["a.png", "a.png"]}
CASES = {
    "far-timestamp": {"t": pa.array([0, FAR_US], pa.timestamp("us"))},
    "latin1-title": {"title": raw(b"ok", b"caf\xe9")},
    "string-view": {"note": pa.array(["x", None], pa.string_view())},
}


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("name", CASES)
def test_what_is_only_passed_through(tmp_path, name):
    write(tmp_path / "m.parquet", **TWO, **CASES[name])
    plan = check(make_job(tmp_path / "m.parquet", tmp_path / "out"))
    (column,) = CASES[name]
    result = result_of(tmp_path / "rows", plan.manifest)
    assert result[column].equals(pa.chunked_array([CASES[name][column]]))


@pytest.mark.parametrize(
    ("column", "code"),
    [("uri", "fetch_not_found"), ("prompt", "prompt_invalid"), ("messages", "prompt_invalid"),
     ("system", "prompt_invalid")],
)  # fmt: skip
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_text_that_is_not_utf8_is_an_error_of_its_row(tmp_path, column, code, kind):
    broken = raw(b"a.png", b"caf\xe9.png").cast(kind)
    write(tmp_path / "m.parquet", **{**TWO, column: broken})
    manifest = check(make_job(tmp_path / "m.parquet", tmp_path / "out")).manifest
    rows = read_all(manifest, ledger_of(manifest))
    assert rows["error_code"].to_pylist() == [None, code]
    assert rows["error_message"][1].as_py() == (
        f"{column}: found a text that is not UTF-8 (byte 0xe9 at 3), expected UTF-8"
    )
    assert rows[column].slice(0, 1).to_pylist() == ["a.png"]
    again = with_unreadable_values(rows, manifest.schema)
    assert again["error_code"].equals(rows["error_code"])


@pytest.mark.parametrize("field", ["uri", "type"])
def test_media_that_are_not_utf8_are_errors_of_their_row(tmp_path, field):
    values = {"uri": raw(b"a.png", b"b"), "type": raw(b"image", b"image")}
    values[field] = raw(b"image", b"\xff")
    media = pa.ListArray.from_arrays(
        pa.array([0, 1, 2], pa.int32()), pa.StructArray.from_arrays([*values.values()], [*values])
    )
    write(tmp_path / "m.parquet", id=["1", "2"], media=media)
    manifest = check(make_job(tmp_path / "m.parquet", tmp_path / "out")).manifest
    codes = read_all(manifest, ledger_of(manifest))["error_code"].to_pylist()
    assert codes == [None, "fetch_not_found"]


@pytest.mark.parametrize("start", [2**62, 2**53 + 1, -(2**63)])
def test_a_start_far_away_is_read_as_seconds(tmp_path, start):
    media = pa.array([[{"type": "video", "uri": "a.mp4", "start_s": start}]])
    write(tmp_path / "m.parquet", id=["1"], media=media)
    manifest = check(make_job(tmp_path / "m.parquet", tmp_path / "out")).manifest
    (row,) = read_all(manifest, ledger_of(manifest))["media"].to_pylist()
    assert row[0]["start_s"] == float(start)


def test_zip_codes_are_refused_as_folders_before_anything_starts(tmp_path):
    write(tmp_path / "m.parquet", **TWO, zip=["00501", "01001"])
    with pytest.raises(JobError, match=r"column 'zip'.*'00501'.* as 501.*put a letter in front"):
        check(make_job(tmp_path / "m.parquet", tmp_path / "out", partition_by=["zip"]))


def test_notes_of_the_plan(tmp_path):
    write(tmp_path / "m" / "_retry=1" / "a.parquet", **TWO, Note=["x", "y"], note=["x", "y"])
    (tmp_path / "m" / "readme.md").write_text("no rows")
    plan = check(make_job(tmp_path / "m", tmp_path / "out"))
    assert plan.manifest.rows == 2
    assert ["readme.md" in plan.notes[0], "only by case" in plan.notes[1]] == [True, True]
    assert json.dumps(plan.bound)


def test_large_rows_are_read_few_at_once(tmp_path):
    cells = [b"x" * (1 << 20) + b"%d" % n for n in range(40)]
    ids = [str(n) for n in range(40)]
    pq.write_table(
        pa.table({"id": ids, "uri": ids, "big": cells}),
        tmp_path / "m.parquet",
        use_dictionary=False,
    )
    from mediamill.pipeline.stages import read

    manifest = check(make_job(tmp_path / "m.parquet", tmp_path / "out")).manifest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, "_BATCH_BYTES", 4 << 20)
        (split,) = plan_splits(manifest, ledger_of(manifest))
        sizes = [len(t) for t in read_split(split, manifest.schema, manifest.partitions)]
    assert max(sizes) <= 4
    assert sum(sizes) == 40
