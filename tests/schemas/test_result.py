"""The schema of the result, its error codes, and what a finished job says of itself."""

import json
import pickle
from dataclasses import fields, replace
from typing import get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.model.media.receipt import Receipt
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, JobError, RowError
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.result import (
    ANSWER_FIELDS,
    RECEIPT_STRUCT,
    Summary,
    result_schema,
    summary_dict,
    summary_text,
)

SUMMARY = Summary(
    rows=240,
    ok=235,
    errors={"media_empty": 1, "decode_corrupt": 3, "fetch_not_found": 1},
    skipped=40,
    prompt_tokens=12000,
    visual_tokens=8000,
    output_tokens=3000,
    seconds=20.0,
    output="demo/captions",
    run_id="r1",
    fingerprint="f1",
    new_errors={"decode_corrupt": 2},
)


def schema_of(**columns):
    manifest = check_manifest_schema(pa.schema(list(columns.items())), "m.parquet")
    return result_schema(manifest)


def test_columns_are_in_the_order_of_the_design():
    schema = schema_of(
        truth=pa.string(), uri=pa.string(), prompt=pa.string(), kind=pa.string(), id=pa.int32()
    )
    assert schema.names[:5] == ["id", "truth", "kind", "uri", "prompt"]
    assert schema.names[5:] == [
        "text",
        "status",
        "error_code",
        "error_message",
        "attempt",
        "finish_reason",
        "prompt_tokens",
        "visual_tokens",
        "output_tokens",
        "mean_logprob",
        "sha256",
        "height",
        "width",
        "frame_times_s",
        "receipt",
        "model",
        "fingerprint",
        "run_id",
        "attempt_history",
    ]
    assert schema.field("id").type == pa.int64()


def test_answer_fields_are_the_reserved_columns():
    assert tuple(field.name for field in ANSWER_FIELDS) == c.RESULT_COLUMNS


def test_an_error_row_and_a_video_row_survive_parquet(tmp_path):
    schema = schema_of(id=pa.string(), uri=pa.string())
    seen = {
        "type": "video",
        "uri": "a.mp4",
        "sha256": "0" * 64,
        "source_height": 120,
        "source_width": 160,
        "height": 112,
        "width": 168,
        "frame_indices": [0, 12],
        "frame_times_s": [0.0, 0.5],
        "visual_tokens": 24,
        "notes": ["4 frames instead of 2.4: min_frames 4"],
        "bound_by": ["min_frames"],
        "seen_sha256": "1" * 64,
    }
    ok = {
        "id": "a",
        "uri": "a.mp4",
        "text": "a clip",
        "status": c.STATUS_OK,
        "attempt": 1,
        "frame_times_s": [0.0, 0.5],
        "receipt": [seen],
    }
    error = {"id": "b", "status": c.STATUS_ERROR, "error_code": ErrorCode.MEDIA_EMPTY}
    table = pa.Table.from_pylist([ok, error], schema=schema)
    pq.write_table(table, tmp_path / "result.parquet")
    rows = pq.read_table(tmp_path / "result.parquet", schema=schema).to_pylist()
    assert rows[0]["receipt"] == [seen]
    assert rows[1]["error_code"] == "media_empty"
    assert rows[1]["text"] is None


def test_error_codes_are_the_closed_list_of_the_design():
    assert {code.value for code in ErrorCode} == {
        "fetch_not_found",
        "fetch_denied",
        "fetch_timeout",
        "fetch_too_large",
        "fetch_failed",
        "decode_corrupt",
        "decode_unsupported",
        "decode_too_large",
        "decode_timeout",
        "decode_crashed",
        "media_empty",
        "prompt_invalid",
        "context_too_long",
        "engine_oom",
        "engine_failed",
        "parse_invalid",
        "json_invalid",
        "poison",
    }


def test_errors_cross_processes():
    error = RowError(ErrorCode.FETCH_DENIED, "no permission for s3://b/k")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (again.code, again.message, str(again)) == (error.code, error.message, str(error))
    assert isinstance(JobError("x"), ValueError)
    assert not isinstance(error, ValueError)


def test_summary_text():
    assert summary_text(SUMMARY).split("\n") == [
        "240 rows: 235 ok, 5 errors, 2 of them new (40 rows are from earlier runs)",
        "errors: decode_corrupt 3, fetch_not_found 1, media_empty 1",
        "this run: 12000 prompt tokens (8000 visual), 3000 output tokens in 20.0 s, 10.0 rows/s",
        "output: demo/captions",
        "run: r1 (fingerprint f1)",
        "to redo the errors: mediamill retry demo/captions",
    ]
    old = replace(SUMMARY, new_errors={}, errors={"decode_corrupt": 1})
    first, *_, last = summary_text(old).split("\n")
    assert "1 error, none of them new" in first
    assert last.startswith("these errors come again unless files or keys change")
    assert old.exit_code == 0


@pytest.mark.parametrize(
    ("rows", "skipped", "first"),
    [
        (3, 0, "3 rows: 3 ok, 0 errors"),
        (3, 3, "3 rows: 3 ok, 0 errors (3 rows are from"),
        (0, 0, "0 rows"),
    ],
)
def test_summary_text_without_errors(rows, skipped, first):
    summary = Summary(rows, rows, {}, skipped, 0, 0, 0, 0.0, "out", "r", "f")
    lines = summary_text(summary).split("\n")
    assert lines[0].startswith(first)
    assert len(lines) == 4
    assert "rows/s" not in lines[1]
    assert summary.exit_code == 0


def test_summary_json():
    said = json.loads(json.dumps(summary_dict(SUMMARY)))
    assert said["event"] == "summary"
    assert said["errors"]["decode_corrupt"] == 3
    assert (said["rows"], said["error_rows"], said["exit_code"]) == (240, 5, 3)
    assert (said["new_errors"], said["new_error_rows"]) == ({"decode_corrupt": 2}, 2)
    assert SUMMARY.exit_code == 3


def test_what_limited_the_run_and_what_is_left_is_said():
    summary = replace(
        SUMMARY,
        binds="prepare",
        engine_rows_s=70.12,
        advice="resources.prepare_workers=12 would have kept the engines busy",
        later=40,
    )
    lines = summary_text(summary).splitlines()
    assert "bottleneck: prepare; engines at work reach 70.1 rows/s" in lines
    assert "advice: resources.prepare_workers=12 would have kept the engines busy" in lines
    assert any(line.startswith("left for later: 40 rows") for line in lines)


def test_a_receipt_on_disk_has_the_fields_of_a_receipt_in_memory():
    """With the URI, and the kind under the name of type."""
    integers = {"frame_indices": pa.int64()}  # all others fit into 32 bits
    hints = get_type_hints(Receipt)
    expected = {"uri": pa.string()}
    for field in fields(Receipt):
        hint, name = hints[field.name], "type" if field.name == "kind" else field.name
        item = get_args(hint)[0] if get_origin(hint) is tuple else hint
        integer = integers.get(name, pa.int32())
        value = {int: integer, float: pa.float64()}.get(item, pa.string())
        expected[name] = pa.list_(value) if item is not hint else value
    assert {field.name: field.type for field in RECEIPT_STRUCT} == expected
