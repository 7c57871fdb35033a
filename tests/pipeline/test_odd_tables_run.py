"""Real jobs over tables with every kind of column, and with rows that cannot be read."""

import json
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mediamill.jobs.report.report import write_report
from mediamill.pipeline.export.export import ExportOptions, export
from mediamill.pipeline.plan import check
from mediamill.pipeline.retry.options import Retry
from mediamill.pipeline.run import run
from mediamill.schemas.arrow_convert import parquet_options
from mediamill.schemas.errors import JobError
from tests.pipeline.odd_columns import BROKEN, COLUMNS, DICTIONARIES, raw
from tests.pipeline.test_odd_tables import assert_equal
from tests.pipeline.world import draw_media, make_job
from tests.soak.simulated import STAGES


def result(folder):
    """The rows of a folder, and their numbers in the order of their ids."""
    table = ds.dataset(folder, format="parquet", partitioning=None).to_table()
    return table, pc.sort_indices(table["id"]).to_numpy()


def column(table, order, name):
    """A column in the order of the ids. Views cannot be taken: rows that follow one another are cut
    out together.
    """
    values = pa.concat_arrays(table[name].chunks)
    starts = np.flatnonzero(np.diff(order, prepend=-2) != 1)
    ends = [*starts[1:], len(order)]
    runs = zip(order[starts].tolist(), (ends - starts).tolist(), strict=True)
    return pa.chunked_array([values.slice(*run) for run in runs], type=values.type)


@pytest.mark.parametrize("rows", [2_016, pytest.param(100_008, marks=pytest.mark.slow)])
def test_every_type_comes_through_ray_bit_for_bit(tmp_path, ray_cluster, rows):
    """Two files, of two row groups each, with simulated stages."""
    copies = rows // 24
    group = {name: pa.concat_arrays([values] * copies) for name, values in COLUMNS.items()}
    (tmp_path / "m").mkdir()
    for file in range(2):
        with ExitStack() as stack:
            writer = None
            for half in range(2):
                ids = pa.array([f"{file}{half}-{n:06}" for n in range(6 * copies)])
                table = pa.table({"id": ids, "uri": pa.repeat("u", len(ids)), **group})
                path = tmp_path / "m" / f"{file}.parquet"
                options = parquet_options(table.schema)
                new = writer or pq.ParquetWriter(path, table.schema, **options)
                writer = writer or stack.enter_context(new)
                writer.write_table(table)
    job = make_job(tmp_path / "m", tmp_path / "out", resources__batch_rows=64)
    summary = run(job, stages=STAGES)
    assert summary.rows == rows
    answered, order = result(tmp_path / "out")
    expected, _ = result(tmp_path / "m")
    for name in COLUMNS:
        assert_equal(column(answered, order, name), expected[name], name)


def test_rows_that_cannot_be_read_are_errors_and_the_others_are_done(tmp_path, ray_cluster):
    media = draw_media(tmp_path / "media")
    good = str(media["picture-0"]).encode()
    bad_prompt, bad_chat = b"caf\xe9", b"[\xff]"
    chat = json.dumps(
        [{"role": "user", "content": [{"type": "image"}, {"text": "\ud800"}]}]
    ).encode()
    cases = {
        "good": (good, b"What?", None, "ok"),
        "uri": (b"caf\xe9.png", None, None, "fetch_not_found"),
        "surrogate-uri": (b"\xed\xa0\x80.png", None, None, "fetch_not_found"),
        "prompt": (good, bad_prompt, None, "prompt_invalid"),
        "chat": (good, None, bad_chat, "prompt_invalid"),
        "surrogate-chat": (good, None, chat, "prompt_invalid"),
        "nul-prompt": (good, b"What\x00?", None, "ok"),
        "nul-uri": (b"a\x00b.png", None, None, None),
        "empty-uri": (b"", None, None, "fetch_not_found"),
        "empty-prompt": (good, b"", None, None),
        "deep-chat": (good, None, b"[" * 100_000, "prompt_invalid"),
        "long-prompt": (good, b"word " * 100_000, None, "context_too_long"),
        "long-uri": (b"x" * 1_000_000, None, None, None),
        "good-too": (good, None, None, "ok"),
    }
    uris, prompts, chats, _ = zip(*cases.values(), strict=True)
    columns = COLUMNS | DICTIONARIES
    passed = {
        f"c {name}": pa.concat_arrays([values] * 3).slice(0, len(cases))
        for name, values in columns.items()
    }
    big = raw(*[b"x" * 30_000_000 if name == "good" else b"\xff" for name in cases])
    table = pa.table(
        {
            "id": list(cases),
            "uri": raw(*uris),
            "prompt": raw(*prompts),
            "messages": raw(*chats),
            "truth": BROKEN.take(pa.array([1] * len(cases))),
            "big": big,
            **passed,
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    job = make_job(tmp_path / "m.parquet", tmp_path / "out", fetch__roots=[str(tmp_path)])
    summary = run(job)
    assert summary.rows == len(cases)
    answered, order = result(tmp_path / "out")
    codes = dict(zip(answered["id"].to_pylist(), answered["error_code"].to_pylist(), strict=True))
    messages = answered["error_message"].to_pylist()
    assert all(len(message or "") <= 2_000 for message in messages)
    for name, (*_, code) in cases.items():
        if code is not None:
            assert codes[name] == (None if code == "ok" else code), name
    expected = pq.read_table(tmp_path / "m.parquet")
    by_id = pc.sort_indices(expected["id"]).to_numpy()
    for name in ("uri", "prompt", "messages", "big", *passed):
        if name.removeprefix("c ") not in DICTIONARIES:
            assert_equal(column(answered, order, name), column(expected, by_id, name), name)
    report = write_report(str(tmp_path / "out"), tmp_path / "report.html")
    assert report.statistics.rows == len(cases)
    where = "id == 'uri' or id == 'prompt'"
    options = {"where": where, "errors": True}
    export(ExportOptions(str(tmp_path / "out"), str(tmp_path / "some"), "parquet", **options))
    some = ds.dataset(tmp_path / "some", format="parquet").to_table(columns=["id"])
    assert sorted(some["id"].to_pylist()) == ["prompt", "uri"]
    again = run(job, check(job, retry=Retry(where, only=True)))
    assert again.new_error_rows == 2
    answered, order = result(tmp_path / "out")
    redone = dict(zip(answered["id"].to_pylist(), answered["attempt"].to_pylist(), strict=True))
    assert {name for name, attempt in redone.items() if attempt == 2} == {"uri", "prompt"}
    for name in ("uri", "prompt", "messages", "big", *passed):
        if name.removeprefix("c ") not in DICTIONARIES:
            assert_equal(column(answered, order, name), column(expected, by_id, name), name)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (raw(b"ok", b"caf\xe9"), r"m.parquet: row 1: column 'id': found a text that is not UTF-8"),
        (pa.array(["a", None]), r"m.parquet: row 1: found no id"),
        (raw(b"a", b"\xed\xa0\x80"), r"m.parquet: row 1: column 'id'"),
        (raw(b"a", b"\xff").dictionary_encode(), r"m.parquet: row 1: column 'id'"),
        (raw(b"a", b"\xff").cast(pa.string_view()), r"m.parquet: row 1: column 'id'"),
    ],
)
def test_an_id_that_cannot_be_read_is_said_before_anything_starts(tmp_path, ids, words):
    pq.write_table(pa.table({"id": ids, "uri": ["u", "u"]}), tmp_path / "m.parquet")
    with pytest.raises(JobError, match=words):
        check(make_job(tmp_path / "m.parquet", tmp_path / "out"))
