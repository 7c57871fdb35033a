"""Outputs to export, made as a job makes them, without a model."""

import hashlib
from pathlib import Path

import pyarrow as pa

from mediamill.pipeline.ledger import ledger, recovery
from mediamill.pipeline.ledger.state import KnownFile
from mediamill.pipeline.records import ROW_STRUCT, parsed_schema
from mediamill.pipeline.stages.write import OutputRules, write_rows
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.result import result_schema
from tests.media import jpeg
from tests.pipeline.ledger.kill_points import Calls

MANIFEST = check_manifest_schema(
    pa.schema(
        [
            ("id", pa.string()),
            ("uri", pa.string()),
            ("kind", pa.string()),
            ("tags", pa.list_(pa.string())),
            ("score", pa.float64()),
        ]
    ),
    "manifest",
)
_MANIFEST_ROWS = 1_000_000


def picture_rows(folder, count, first=0):
    """Rows about small pictures, which are drawn; their suffix says nothing."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(first, first + count):
        data = jpeg(24, 32, seed=number)
        path = Path(folder) / f"picture-{number:04}.jpg"
        path.write_bytes(data)
        rows.append(row(number, uri=str(path), sha256=hashlib.sha256(data).hexdigest()))
    return rows


def row(number, **values):
    return {
        "id": f"row-{number:04}",
        "uri": f"photos/{number}.jpg",
        "kind": "ab"[number % 2],
        "tags": ["x"] * (number % 3),
        "score": number / 2,
        c.TEXT: f"text {number}",
        **values,
    }


def error_row(number, code="fetch_not_found", **values):
    failed = {c.STATUS: c.STATUS_ERROR, c.ERROR_CODE: code, c.ERROR_MESSAGE: "no such file"}
    return row(number, **{c.TEXT: None, **failed, **values})


def add_run(output, rows, start=0, partition_by=(), rows_per_file=4):
    """A run that finishes these rows, the manifest's from `start` on. Returns the output's URL."""
    place = storage.resolve(str(output))
    name = f"run-{start}"
    state = ledger.load(place)
    layout = {
        "partition_by": list(partition_by),
        "columns": {field.name: str(field.type) for field in result_schema(MANIFEST)},
    }
    header = {"fingerprint": "f", "parts": {}, "layout": layout}
    files = [KnownFile("m.parquet", _MANIFEST_ROWS, "d")]
    ledger.begin(place, state, name, header, files, rows_per_file)
    recovery.mark_unfinished(place)
    recovery.recover(place, state)
    rules = OutputRules(
        place.url,
        result_schema(MANIFEST),
        partition_by,
        rows_per_file,
        {c.MODEL: "m", c.FINGERPRINT: "f", c.RUN_ID: name},
    )
    schema = parsed_schema(MANIFEST)
    ordinals = [{"file": 0, "index": start + number} for number in range(len(rows))]
    columns = {
        field.name: pa.array([one.get(field.name) for one in rows], field.type) for field in schema
    }
    columns[c.ROW] = pa.array(ordinals, ROW_STRUCT)
    if rows:
        write_rows(pa.table(columns, schema=schema), rules, Calls(place, name))
    recovery.flush(place, state)
    ledger.end(place, state, {})
    recovery.mark_finished(place, "{}")
    return place.url
