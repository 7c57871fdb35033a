"""Kills a run's writing at each of its steps in turn, and checks that each row comes out once.

Run as a program: one process that imports everything once and forks a process for each kill. It
ends, as by SIGKILL, before its n-th call that changes the file system: a kill can interrupt nothing
else. The files are then what a reader sees between two steps.
Prints {"kills": n, "rows_seen": [...]}, or fails with a traceback. With a second argument, a seed,
it kills resumed runs too, at steps drawn from the seed.
"""

import asyncio
import json
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from mediamill.pipeline.ledger import ledger, publish, recovery, snapshot
from mediamill.pipeline.ledger.state import KnownFile
from mediamill.pipeline.records import ROW_STRUCT, parsed_schema
from mediamill.pipeline.stages.write import OutputRules, write_rows
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.result import result_schema
from tests.pipeline.world import assert_each_once, read_output

ROWS, TASK_ROWS, FILE_ROWS = 22, 6, 4
OLD_ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 21]  # what an earlier run has committed
CHANGES = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
MANIFEST = check_manifest_schema(
    pa.schema([("id", pa.string()), ("uri", pa.string()), ("kind", pa.string())]), "manifest"
)
KILLED = 77


class Calls:
    """The ledger as a write task calls it, without Ray."""

    def __init__(self, output, run):
        self._ledger = ledger.Ledger(output.url, run)

    def finished(self, rows):
        return asyncio.run(self._ledger.finished(rows))

    def commit(self, commit):
        return asyncio.run(self._ledger.commit(commit))

    def published(self, names):
        return asyncio.run(self._ledger.published(names))


class Dying(Calls):
    """A ledger whose write tasks end before they have published anything."""

    def commit(self, commit):
        super().commit(commit)
        return ledger.CommitReply()


def table(indices):
    """A table of rows as the generate stage returns them."""
    count = len(indices)
    columns = {field.name: pa.nulls(count, field.type) for field in parsed_schema(MANIFEST)}
    columns["id"] = pa.array([f"row-{index}" for index in indices])
    columns["kind"] = pa.array(["ab"[index % 2] for index in indices])
    columns[c.TEXT] = pa.array([f"text {index}" for index in indices])
    ordinals = [pa.array([0] * count, pa.int32()), pa.array(indices, pa.int64())]
    columns[c.ROW] = pa.StructArray.from_arrays(ordinals, fields=list(ROW_STRUCT))
    return pa.table(columns, schema=parsed_schema(MANIFEST))


def begin(output, name):
    """Begins a run, and returns the state of the output's log."""
    state = ledger.load(output)
    header = {"fingerprint": "f", "parts": {}, "layout": {}}
    ledger.begin(output, state, name, header, [KnownFile("m.parquet", ROWS, "d")], FILE_ROWS)
    return state


def write(output, name, indices, calls):
    constants = {c.MODEL: "m", c.FINGERPRINT: "f", c.RUN_ID: name}
    rules = OutputRules(output.url, result_schema(MANIFEST), ("kind",), FILE_ROWS, constants)
    write_rows(table(indices), rules, calls)


def earlier_run(output):
    """A run that was killed before it published its groups, with leftovers of all kinds."""
    begin(output, "earlier")
    write(output, "earlier", OLD_ROWS, Dying(output, "earlier"))
    publish.stage(output, "notcommitted", [("kind=a", table([20]))])
    storage.put(publish.staged(output) / "cut.whole", b"a file that did not get its name")
    storage.put(publish.staged(output) / ".cut.tmp", b"a part that did not get")


def run(output, name):
    """One run over all unfinished rows, like the pipeline's."""
    # A snapshot after every few records, so that a short run has several.
    snapshot.due = lambda state, since: since >= 3
    state = begin(output, name)
    recovery.mark_unfinished(output)
    recovery.recover(output, state)
    calls = Calls(output, name)
    left = np.flatnonzero(state.pending(0, 0, ROWS))
    for start in range(0, len(left), TASK_ROWS):
        write(output, name, left[start : start + TASK_ROWS].tolist(), calls)
    recovery.flush(output, state)
    if ledger.end(output, state, {}):
        recovery.mark_finished(output, "{}")


def forked(action):
    """The exit code of `action` in a forked process."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001 - must not go on as the parent
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(number, output, name):
    """A run that ends before its `number`-th change."""
    steps = 0

    def hook(event, arguments):
        nonlocal steps
        steps += event in CHANGES
        if steps == number:
            os._exit(KILLED)

    sys.addaudithook(hook)
    run(output, name)


def assert_readable(output, filesystem=None):
    """Checks what a reader sees: no row twice, no broken file. Returns the ids."""
    if output.is_local and not Path(output.path).exists():
        return []
    ids = [row["id"] for row in read_output(output.path, filesystem)]
    assert len(ids) == len(set(ids)), sorted(ids)
    # No hidden object can be mistaken for a result.
    assert not [name for name in storage.list_files(output / ledger.HIDDEN) if "parquet" in name]
    return ids


def look(output, folder):
    ids = assert_readable(output)
    with (folder / "seen").open("a") as seen:
        seen.write(f"{len(ids)}\n")


def assert_finished(output, filesystem=None):
    rows = read_output(output.path, filesystem)
    assert_each_once(rows, [f"row-{index}" for index in range(ROWS)])
    assert {row["id"]: row["text"] for row in rows} == {
        f"row-{index}": f"text {index}" for index in range(ROWS)
    }
    assert publish.leftovers(output, ()) == [], "staged objects are left"
    state = ledger.load(output)
    assert not state.pending(0, 0, ROWS).any()
    assert state.counts.rows == ROWS
    assert recovery.is_settled(output, state)


def resumed(output, folder):
    look(output, folder)
    run(output, "resumed")
    assert_finished(output)


def check(folder, steps):
    """Returns whether the last of the runs was killed before it ended."""
    output = storage.resolve(str(folder / "out"))
    shutil.copytree(folder / "earlier", output.path)
    for number, step in enumerate(steps):
        code = forked(lambda: killed_at(step, output, f"killed-{number}"))  # noqa: B023
        assert code in (0, KILLED), f"kills at {steps}: run {number} failed with {code}"
    assert forked(lambda: resumed(output, folder)) == 0, f"kills at {steps}: rows lost or doubled"
    shutil.rmtree(output.path)
    return code == KILLED


def main(folder, seed=None):
    earlier = storage.resolve(str(folder / "earlier"))
    assert forked(lambda: earlier_run(earlier)) == 0
    kills = 0
    while check(folder, [kills + 1]):
        kills += 1
    if seed is not None:
        draw = random.Random(seed)
        for _ in range(200):
            check(folder, [draw.randint(1, kills) for _ in range(draw.randint(2, 5))])
    seen = [int(line) for line in (folder / "seen").read_text().split()]
    print(json.dumps({"kills": kills, "rows_seen": sorted(set(seen))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
