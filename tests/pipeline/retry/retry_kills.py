"""Kills a retry, and a run after a deleted folder, at each of their changes, with a reader that
looks at each of them.

Run as a program, with a folder, what to kill (retry or deleted) and how many changes lie between
two kills; it forks a process for each kill, like kill_points. Prints {"kills": n, "moments": n}.
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger import ledger, publish, recovery, snapshot
from mediamill.pipeline.ledger.inventory import take_inventory
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.manifest.resharding import check_files
from mediamill.pipeline.retry import chosen_rows
from mediamill.pipeline.retry.options import Retry
from mediamill.pipeline.retry.reopen import reopen_rows
from mediamill.pipeline.stages.read import plan_splits
from mediamill.pipeline.stages.write import OutputRules, write_rows
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.result import result_schema
from tests.pipeline.ledger.kill_points import CHANGES, KILLED, MANIFEST, Calls, forked
from tests.pipeline.ledger.kill_points import table as ok_rows
from tests.pipeline.world import read_output

ROWS, TASK_ROWS, FILE_ROWS = 22, 6, 4
ERRORS = [1, 2, 3, 9, 14, 21]
IDS = sorted(f"row-{index}" for index in range(ROWS))


def rows(indices, texts, errors=()):
    """A table of rows as the generate stage returns them. texts: their first word."""
    table = ok_rows(indices)
    failed = [index in errors for index in indices]
    columns = {
        c.TEXT: [None if bad else f"{texts} {i}" for i, bad in zip(indices, failed, strict=True)],
        c.STATUS: ["error" if bad else None for bad in failed],
        c.ERROR_CODE: ["fetch_timeout" if bad else None for bad in failed],
        c.ATTEMPT: [1] * len(indices),
    }
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(
            at, table.schema.field(at), pa.array(values, table.schema[at].type)
        )
    return table


def write_manifest(folder):
    path = Path(folder) / "m.parquet"
    ids = [f"row-{index}" for index in range(ROWS)]
    kinds = ["ab"[index % 2] for index in range(ROWS)]
    pq.write_table(pa.table({"id": ids, "uri": ids, "kind": kinds}), path)
    return path


def run(output, manifest_path, name, texts="text", errors=(), retry=None, told=None):
    """One run without Ray, as pipeline/run.py makes it."""
    snapshot.due = lambda state, since: since >= 3
    state = ledger.load(output)
    manifest = open_manifest(str(manifest_path), state.files, state.header)
    checked = check_files(manifest, state, output)
    layout = {"partition_by": ["kind"], "columns": {"kind": "string"}}
    header = {"fingerprint": "f", "parts": {}, "layout": layout, **manifest.header()}
    ledger.begin(output, state, name, header, checked.files, FILE_ROWS, checked.resharding)
    if retry is None or not retry.only:
        recovery.mark_unfinished(output)
    recovery.recover(output, state)
    tell = (told if told is not None else []).append
    reopen_rows(output, state, manifest, retry, name, tell)
    calls = Calls(output, name)
    constants = {c.MODEL: "m", c.FINGERPRINT: "f", c.RUN_ID: name}
    rules = OutputRules(
        output.url,
        result_schema(MANIFEST),
        ("kind",),
        FILE_ROWS,
        constants,
        retries=retry is not None,
        changed=retry and retry.changed_text,
    )
    left = np.flatnonzero(state.pending(0, 0, ROWS)).tolist()
    assert sum(split.rows for split in plan_splits(manifest, state)) == len(left)
    for start in range(0, len(left), TASK_ROWS):
        write_rows(rows(left[start : start + TASK_ROWS], texts, errors), rules, calls)
    recovery.flush(output, state)
    if ledger.end(output, state, {}):
        chosen_rows.remove(output)
        if state.counts.rows == ROWS:
            recovery.mark_finished(output, "{}")
    return state


def check_moment(output, complete, filesystem=None):
    """Checks what a reader sees: rows once, each the old one or the new one."""
    seen = read_output(output.path, filesystem)
    ids = [row["id"] for row in seen]
    assert len(ids) == len(set(ids)), "a row is visible twice"
    if complete:
        assert sorted(ids) == IDS, f"only {len(ids)} rows are visible"
    for row in seen:
        number = int(row["id"].removeprefix("row-"))
        if row["text"] is None:
            assert (row["status"], row["attempt"], number in ERRORS) == ("error", 1, True)
        else:
            assert row["text"] in (f"text {number}", f"new {number}")
    return len(seen)


def assert_redone(output, filesystem=None, retried=True):
    """Checks the output after the retry, or after the run that redoes deleted rows."""
    check_moment(output, True, filesystem)
    for row in read_output(output.path, filesystem):
        number = int(row["id"].removeprefix("row-"))
        if retried and number in ERRORS:
            assert (row["status"], row["text"], row["attempt"]) == ("ok", f"new {number}", 2)
            first, second = row["attempt_history"]
            assert (first["attempt"], first["error_code"]) == (1, "fetch_timeout")
            assert (second["attempt"], second["error_code"]) == (2, None)
        elif retried:
            assert (row["text"], row["attempt_history"]) == (f"text {number}", None)
    state = ledger.load(output)
    assert (state.counts.ok, state.counts.errors) == (ROWS, {}) or not retried
    assert state.counts.rows == ROWS
    assert not state.replacements
    assert publish.leftovers(output, ()) == [], "staged objects are left"
    assert recovery.is_settled(output, state)
    found = take_inventory(output, state)
    assert not found.differs, found
    assert not storage.list_files(output / ledger.HIDDEN / "retry")


def action(what, output, manifest, name):
    retry = Retry() if what == "retry" else None
    run(output, manifest, name, "new", (), retry)


def watched(what, output, manifest, seen, kill_at=None):
    """Runs with a look before each change of the file system, or ends before one of them."""
    steps, busy = 0, False

    def hook(event, arguments):
        nonlocal steps, busy
        if busy or event not in CHANGES or threading.current_thread().name == "lease":
            return
        busy = True
        steps += 1
        if kill_at is None:
            seen.append(check_moment(output, what == "retry"))
        elif steps == kill_at:
            os._exit(KILLED)
        busy = False

    sys.addaudithook(hook)
    action(what, output, manifest, "watched")
    busy = True
    seen.append(check_moment(output, True))


def resumed(what, output, manifest):
    check_moment(output, what == "retry")
    run(output, manifest, "plain")  # another run first publishes what was committed
    check_moment(output, True)
    action(what, output, manifest, "resumed")
    assert_redone(output, retried=what == "retry")


def main(folder, what, stride=1):
    recovery._THREADS = 1  # one change at a time
    manifest = write_manifest(folder)
    original = storage.resolve(str(folder / "original"))
    run(original, manifest, "first", "text", ERRORS)
    if what == "deleted":
        shutil.rmtree(folder / "original" / "kind=b")
    output = storage.resolve(str(folder / "out"))

    def watch():
        seen = []
        watched(what, output, manifest, seen)
        assert_redone(output, retried=what == "retry")
        (folder / "seen").write_text(json.dumps(seen))

    shutil.copytree(original.path, output.path)
    assert forked(watch) == 0
    moments = len(json.loads((folder / "seen").read_text()))
    kills = 0
    while True:
        shutil.rmtree(output.path)
        shutil.copytree(original.path, output.path)
        step = kills * stride + 1
        code = forked(lambda: watched(what, output, manifest, [], step))  # noqa: B023
        assert code in (0, KILLED), f"kill at change {step}: failed with {code}"
        assert forked(lambda: resumed(what, output, manifest)) == 0, f"kill at change {step}"
        if code == 0:
            break
        kills += 1
    print(json.dumps({"kills": kills, "moments": moments}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
