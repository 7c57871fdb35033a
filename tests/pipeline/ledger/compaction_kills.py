"""Kills a compaction at each of its changes in turn, with a reader that looks at each of them.

Run as a program, with the folder, the layout (partitioned, flat or one-by-one), and how many
changes lie between two kills; it forks a process for each kill, like kill_points.
Prints {"kills": n, "moments": n, "fewest": rows}.
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq

from mediamill.pipeline import compact as compaction_run
from mediamill.pipeline.ledger import compaction, folder_swap, ledger, publish, recovery
from mediamill.pipeline.ledger.journal import readable_files
from mediamill.pipeline.stages.write import OutputRules, write_rows
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.result import result_schema
from tests.pipeline.ledger.kill_points import CHANGES, KILLED, MANIFEST, ROWS, Calls, begin, forked
from tests.pipeline.ledger.kill_points import table as rows_table
from tests.pipeline.world import read_output

IDS = sorted(f"row-{index}" for index in range(ROWS))


def nightly_runs(output, partition_by, rows=ROWS, step=3):
    """Runs that each add a few rows: many small files."""
    for number, start in enumerate(range(0, rows, step)):
        name = f"night-{number}"
        state = begin(output, name)
        recovery.mark_unfinished(output)
        recovery.recover(output, state)
        constants = {c.MODEL: "m", c.FINGERPRINT: "f", c.RUN_ID: name}
        rules = OutputRules(output.url, result_schema(MANIFEST), partition_by, 4, constants)
        indices = list(range(start, min(start + step, rows)))
        write_rows(rows_table(indices), rules, Calls(output, name))
        recovery.flush(output, state)
        ledger.end(output, state, {})
    recovery.mark_finished(output, "{}")


def glob_ids(folder):
    """What a plain reader sees: every *.parquet of the tree, also of hidden folders."""
    ids = []
    for path in sorted(Path(folder).rglob("*.parquet")):
        ids += pq.ParquetFile(path).read(columns=["id"])["id"].to_pylist()
    return sorted(ids)


def exact_ids(output, filesystem=None):
    """What a reader sees that knows the journal."""
    ids = []
    for place in readable_files(output).values():
        ids += pq.ParquetFile(place.fs.open(place.path)).read(columns=["id"])["id"].to_pylist()
    return sorted(ids)


def check_moment(output, exactly):
    assert exact_ids(output) == IDS
    assert ledger.load(output).counts.rows == ROWS  # the log is there at every moment
    seen = glob_ids(output.path)
    assert len(seen) == len(set(seen)), "a row is visible twice"
    if exactly:
        assert seen == IDS, f"only {len(seen)} rows are visible"
        assert sorted(row["id"] for row in read_output(output.path)) == IDS
    elif seen != IDS:
        assert not storage.exists(output / "_SUCCESS")
    return len(seen)


def assert_compacted(output, before):
    state = ledger.load(output)
    assert not state.pending(0, 0, ROWS).any()
    assert state.counts.rows == ROWS
    assert glob_ids(output.path) == IDS
    assert exact_ids(output) == IDS
    assert recovery.is_settled(output, state)
    assert len(publish.visible_files(output)) < before
    for folder in ("_manifest", ledger.HIDDEN):
        assert (Path(output.path) / folder).is_dir() or folder == "_manifest"
        assert not (Path(output.path) / folder).is_symlink()
    assert storage.list_files(compaction.work_folder(output)) == []
    parent = Path(output.path).parent
    assert not [path for path in parent.iterdir() if path.name.startswith(".")]


def compact_watched(output, exactly, seen, kill_at=None):
    """Compacts, with a look before each change of the file system."""
    steps, busy = 0, False

    def hook(event, arguments):
        nonlocal steps, busy
        # The lease's heartbeats come at any time, while the other thread goes on.
        if busy or event not in CHANGES or threading.current_thread().name == "lease":
            return
        busy = True
        steps += 1
        if kill_at is None:
            seen.append(check_moment(output, exactly))
        elif steps == kill_at:
            os._exit(KILLED)
        busy = False

    sys.addaudithook(hook)
    compaction_run.compact(output.url, 9)
    busy = True
    seen.append(check_moment(output, exactly))


def killed(output, exactly, number):
    compact_watched(output, exactly, [], number)


def resumed(output, exactly, before, by_run):
    check_moment(output, exactly)
    if by_run:  # the next night's run finishes what was begun, then a compaction the rest
        state = begin(output, "next")
        recovery.recover(output, state)
        check_moment(output, True)
        ledger.end(output, state, {})
    compaction_run.compact(output.url, 9)
    assert_compacted(output, before)


def main(folder, layout, stride=1):
    compaction._THREADS = 1  # one change at a time
    folder_swap._GRACE_S = 0.0
    if layout == "one-by-one":
        folder_swap.can_exchange = lambda one, other: False
    exactly = layout != "one-by-one"
    original = storage.resolve(str(folder / "original"))
    nightly_runs(original, () if layout == "flat" else ("kind",), step=6)
    storage.put(original / "_manifest" / "shard", b"a folder of another kind, which stays")
    before = len(publish.visible_files(original))
    output = storage.resolve(str(folder / "tree" / "out"))

    def watch():
        seen = []
        compact_watched(output, exactly, seen)
        assert_compacted(output, before)
        (folder / "seen").write_text(json.dumps(seen))

    shutil.copytree(original.path, output.path)
    assert forked(watch) == 0
    seen = json.loads((folder / "seen").read_text())
    kills = 0
    while True:
        shutil.rmtree(output.path)
        shutil.copytree(original.path, output.path)
        step = kills * stride + 1
        code = forked(lambda: killed(output, exactly, step))  # noqa: B023
        assert code in (0, KILLED), f"kill at change {step}: failed with {code}"
        assert forked(lambda: resumed(output, exactly, before, kills % 2)) == 0, step  # noqa: B023
        if code == 0:
            break
        kills += 1
    print(json.dumps({"kills": kills, "moments": len(seen), "fewest": min(seen)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
