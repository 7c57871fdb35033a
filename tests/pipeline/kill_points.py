"""Kills a writer at each of its steps in turn, and looks whether a resumed run has each row once.

Run as a program: one process that imports everything once and forks a child for each kill. A child
ends, as by SIGKILL, before its n-th call that changes the file system: there is nothing else that
a kill could interrupt. Prints {"kills": n, "rows_seen": [...]}, or fails with a traceback.
"""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import ledger, staging, storage
from pipeline.ledger_state import KnownFile
from pipeline.records import ROW_STRUCT, parsed_schema
from pipeline.write import OutputRules, write_rows
from schemas import columns as c
from schemas.manifest import check_manifest_schema
from schemas.result import result_schema
from tests.pipeline.world import assert_each_once, read_output

ROWS, TASK_ROWS, FILE_ROWS = 18, 9, 3
CHANGES = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
MANIFEST = check_manifest_schema(
    pa.schema([("id", pa.string()), ("uri", pa.string()), ("kind", pa.string())]), "manifest"
)
KILLED = 77


class Calls:
    """The ledger without Ray: what the write task calls is the same."""

    def __init__(self, output, run):
        self._ledger = ledger.Ledger(output.url, run)

    def taken(self, rows):
        return asyncio.run(self._ledger.taken(rows))

    def commit(self, commit):
        return asyncio.run(self._ledger.commit(commit))


def table(indices):
    """Rows as they come out of the stage before write."""
    count = len(indices)
    columns = {field.name: pa.nulls(count, field.type) for field in parsed_schema(MANIFEST)}
    columns["id"] = pa.array([f"row-{index}" for index in indices])
    columns["kind"] = pa.array(["ab"[index % 2] for index in indices])
    columns[c.TEXT] = pa.array([f"text {index}" for index in indices])
    ordinals = [pa.array([0] * count, pa.int32()), pa.array(indices, pa.int64())]
    columns[c.ROW] = pa.StructArray.from_arrays(ordinals, fields=list(ROW_STRUCT))
    return pa.table(columns, schema=parsed_schema(MANIFEST))


def run(output, name):
    """One run over all rows that are not finished."""
    state = ledger.load(output)
    header = {"fingerprint": "f", "parts": {}, "layout": {}}
    ledger.begin(output, state, name, header, [KnownFile("m.parquet", ROWS, "d")])
    staging.recover(output, state.tokens)
    calls = Calls(output, name)
    constants = {c.MODEL: "m", c.FINGERPRINT: "f", c.RUN_ID: name}
    rules = OutputRules(output.url, result_schema(MANIFEST), ("kind",), FILE_ROWS, constants)
    left = np.flatnonzero(state.pending(0, 0, ROWS))
    for start in range(0, len(left), TASK_ROWS):
        write_rows(table(left[start : start + TASK_ROWS].tolist()), rules, calls)
    ledger.catch_up(output, state)
    staging.recover(output, state.tokens)
    ledger.end(output, state, {})


def forked(action):
    """The exit code of `action` in a child."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001 - a child must not go on as its parent
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(number, output):
    """A run that ends before its `number`-th change."""
    steps = 0

    def hook(event, arguments):
        nonlocal steps
        steps += event in CHANGES
        if steps == number:
            os._exit(KILLED)

    sys.addaudithook(hook)
    run(output, "killed")


def look(output, folder):
    """What a reader sees right after the kill: never a row twice, never a broken file."""
    rows = read_output(output.path) if Path(output.path).exists() else []
    assert_each_once(rows, [row["id"] for row in rows])
    with (folder / "seen").open("a") as seen:
        seen.write(f"{len(rows)}\n")


def finished(output):
    assert_each_once(read_output(output.path), [f"row-{i}" for i in range(ROWS)])
    assert not staging.has_leftovers(output), "staged files are left"
    assert not ledger.load(output).pending(0, 0, ROWS).any()


def check(folder, number):
    """Whether the run was killed before it was over."""
    output = storage.resolve(str(folder / f"out-{number}"))
    code = forked(lambda: killed_at(number, output))
    assert code in (0, KILLED), f"kill {number}: the run failed with {code}"
    assert forked(lambda: look(output, folder)) == 0, f"kill {number}: looking"
    assert forked(lambda: run(output, "resumed")) == 0, f"kill {number}: the resumed run failed"
    assert forked(lambda: finished(output)) == 0, f"kill {number}: rows are lost or doubled"
    shutil.rmtree(output.path)
    return code == KILLED


def main(folder):
    kills = 0
    while check(folder, kills + 1):
        kills += 1
    seen = [int(line) for line in (folder / "seen").read_text().split()]
    print(json.dumps({"kills": kills, "rows_seen": sorted(set(seen))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
