"""Kills a run's writing at each of its steps in turn, and looks whether each row comes out once.

Run as a program: one process that imports everything once and forks a child for each kill. A child
ends, as by SIGKILL, before its n-th call that changes the file system: there is nothing else that
a kill could interrupt. What is then there is what a reader sees between two steps.
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

from mediamill.pipeline.ledger import ledger, publish, snapshot, staging
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
    """The ledger without Ray: what the write task calls is the same."""

    def __init__(self, output, run):
        self._ledger = ledger.Ledger(output.url, run)

    def taken(self, rows):
        return asyncio.run(self._ledger.taken(rows))

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
    """Rows as they come out of the stage before write."""
    count = len(indices)
    columns = {field.name: pa.nulls(count, field.type) for field in parsed_schema(MANIFEST)}
    columns["id"] = pa.array([f"row-{index}" for index in indices])
    columns["kind"] = pa.array(["ab"[index % 2] for index in indices])
    columns[c.TEXT] = pa.array([f"text {index}" for index in indices])
    ordinals = [pa.array([0] * count, pa.int32()), pa.array(indices, pa.int64())]
    columns[c.ROW] = pa.StructArray.from_arrays(ordinals, fields=list(ROW_STRUCT))
    return pa.table(columns, schema=parsed_schema(MANIFEST))


def begin(output, name):
    """The state of the output's log when the run has begun."""
    state = ledger.load(output)
    header = {"fingerprint": "f", "parts": {}, "layout": {}}
    ledger.begin(output, state, name, header, [KnownFile("m.parquet", ROWS, "d")], FILE_ROWS)
    return state


def write(output, name, indices, calls):
    constants = {c.MODEL: "m", c.FINGERPRINT: "f", c.RUN_ID: name}
    rules = OutputRules(output.url, result_schema(MANIFEST), ("kind",), FILE_ROWS, constants)
    write_rows(table(indices), rules, calls)


def earlier_run(output):
    """A run that was killed with files decided on and not made, and with debris of all kinds."""
    begin(output, "earlier")
    write(output, "earlier", OLD_ROWS, Dying(output, "earlier"))
    publish.stage(output, "notcommitted", [("kind=a", table([20]))])
    storage.put(publish.staged(output) / "cut.whole", b"a file that did not get its name")
    storage.put(publish.staged(output) / ".cut.tmp", b"a part that did not get")


def run(output, name):
    """One run over all rows that are not finished, as the pipeline's."""
    # A snapshot after every few records, so that a short run has several.
    snapshot.due = lambda state, since: since >= 3
    state = begin(output, name)
    staging.mark_unfinished(output)
    staging.recover(output, state)
    calls = Calls(output, name)
    left = np.flatnonzero(state.pending(0, 0, ROWS))
    for start in range(0, len(left), TASK_ROWS):
        write(output, name, left[start : start + TASK_ROWS].tolist(), calls)
    staging.flush(output, state)
    if ledger.end(output, state, {}):
        staging.mark_finished(output, "{}")


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
    """What a reader sees: never a row twice, never a broken file. Returns the ids."""
    if output.is_local and not Path(output.path).exists():
        return []
    ids = [row["id"] for row in read_output(output.path, filesystem)]
    assert len(ids) == len(set(ids)), sorted(ids)
    # Nothing that somebody could take for a result lies among the hidden objects.
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
    assert staging.is_settled(output, state)


def resumed(output, folder):
    look(output, folder)
    run(output, "resumed")
    assert_finished(output)


def check(folder, steps):
    """Whether the last of the runs that were to be killed was so before it was over."""
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
