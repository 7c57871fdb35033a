"""Measures the check of a manifest whose rows are in other files: `python -m benchmarks.reshard`.

A manifest of 100 files, of whose rows a random half is finished, is written anew: all rows in
random order in 10 files. Processes of their own check the first manifest, check the second one and
begin a run on it, and start once more. Memory is the peak of that process above its imports.

Then all rows are finished, the manifest is written anew once more, and the whole job starts twice:
the first start joins the ids and records where they are, the second one does neither.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.ledger import ledger, recovery, snapshot
from mediamill.pipeline.ledger.log import log_of
from mediamill.pipeline.ledger.state import LedgerState, VisibleFile
from mediamill.pipeline.plan import Plan, check
from mediamill.pipeline.run import run
from mediamill.pipeline.stages.read import plan_splits
from mediamill.pipeline.storage import storage
from mediamill.schemas.job import JobConfig, load_job

OLD_FILES, NEW_FILES = 100, 10
RESULT_ROWS = 10_000
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--step", nargs=2, metavar=("NAME", "DIR"), help="one process")
    wanted = parser.parse_args()
    if wanted.step:
        steps = {"first": first, "resharded": resharded, "again": again, "complete": complete}
        print(json.dumps(steps[wanted.step[0]](Path(wanted.step[1]))))
        return
    figures: dict[str, Any] = {"rows": wanted.rows}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = np.random.default_rng(0).permutation(wanted.rows)
        write_manifest(folder, ids, OLD_FILES)
        figures["first"] = child("first", folder)
        figures["finished"] = finish_half(folder, ids)
        write_manifest(folder, np.random.default_rng(1).permutation(ids), NEW_FILES)
        for step in ("resharded", "again"):
            figures[step] = child(step, folder)
        finish_rest(folder)
        write_manifest(folder, ids, OLD_FILES)
        for start in (1, 2):
            figures[f"complete_start_{start}"] = child("complete", folder)
    print(json.dumps(figures, indent=1))
    if wanted.json:
        wanted.json.write_text(json.dumps(figures, indent=1))


def child(step: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.reshard", "--step", step, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def first(folder: Path) -> dict[str, Any]:
    """Checks the first manifest and begins a run on it."""
    plan, figures = checked(folder)
    begin(plan)
    return figures


def resharded(folder: Path) -> dict[str, Any]:
    """Checks the second manifest and begins a run on it."""
    plan, figures = checked(folder)
    assert len(plan.resharding.retired) == OLD_FILES
    started = time.perf_counter()
    begin(plan)
    figures["begin_s"] = time.perf_counter() - started
    figures["record_mib"] = max(file.stat().st_size for file in log(folder).glob("*.json")) / MIB
    assert plan.state.counts.rows == sum(np.bitwise_count(b).sum() for b in plan.state.done)
    return figures


def again(folder: Path) -> dict[str, Any]:
    """The next start: nothing has changed."""
    plan, figures = checked(folder)
    assert not plan.resharding.retired
    splits = plan_splits(plan.manifest, plan.state)
    assert sum(split.rows for split in splits) == plan.rows_left
    return figures


def complete(folder: Path) -> dict[str, Any]:
    """A start of the whole job that has nothing to do."""
    started, cpu_started = time.perf_counter(), time.process_time()
    plan = check(job(folder))
    assert not plan.rows_left
    assert run(job(folder), plan).skipped == plan.manifest.rows
    return {
        "joined": bool(plan.resharding.retired),
        "start_s": time.perf_counter() - started,
        "start_cpu_s": time.process_time() - cpu_started,
    }


def checked(folder: Path) -> tuple[Plan, dict[str, Any]]:
    before, started, cpu_started = peak(), time.perf_counter(), time.process_time()
    plan = check(job(folder))
    figures = {
        "check_s": time.perf_counter() - started,
        "check_cpu_s": time.process_time() - cpu_started,  # on a busy machine, the fairer one
        "peak_mib": peak() - before,
    }
    return plan, figures


def begin(plan: Plan) -> None:
    plan.new_ids.save()
    bound, run = dict(plan.bound), f"run-{plan.state.sequence}"
    ledger.begin(plan.output, plan.state, run, bound, plan.files, RESULT_ROWS, plan.resharding)


def finish_half(folder: Path, ids: npt.NDArray[np.int64]) -> int:
    """Finishes a random half of the rows of the first manifest."""
    rng = np.random.default_rng(2)
    state = ledger.load(storage.resolve(str(folder / "out")))
    finished = []
    for number, part in enumerate(np.array_split(ids, OLD_FILES)):
        bits = rng.random(len(part)) < 0.5
        state.done[number][:] = np.packbits(bits, bitorder="little")
        finished.append(part[bits])
    return store_results(folder, state, np.concatenate(finished))


def finish_rest(folder: Path) -> None:
    """Finishes the other rows of the second manifest."""
    output = storage.resolve(str(folder / "out"))
    state = ledger.load(output)
    left = []
    for number, file in enumerate(state.files):
        if not file.rows:
            continue
        ids = pq.read_table(folder / "manifest" / file.name, columns=["id"])["id"].to_pylist()
        pending = np.flatnonzero(state.pending(number, 0, file.rows))
        numbers = [int(ids[row].removeprefix("images/")[:12]) for row in pending.tolist()]
        left.append(np.array(numbers, np.int64))
        bits = np.ones(file.rows, np.bool_)
        state.done[number] = np.packbits(bits, bitorder="little")
    store_results(folder, state, np.concatenate(left))
    recovery.mark_finished(output, "{}")


def store_results(folder: Path, state: LedgerState, done: npt.NDArray[np.int64]) -> int:
    """Writes the results of rows, and the log that says that they are finished."""
    state.counts.ok += len(done)
    for number, start in enumerate(range(0, len(done), RESULT_ROWS)):
        part = done[start : start + RESULT_ROWS]
        text = pa.array(["A red square on a green field."] * len(part))
        table = pa.table({"id": names(part), "text": text})
        name = f"part-{state.sequence:012}-{number:05}.parquet"
        path = folder / "out" / name
        pq.write_table(table, path)
        visible = VisibleFile(table.num_rows, path.stat().st_size)
        state.visible = {**(state.visible or {}), name: visible}
    data = snapshot.dump(state)
    (log(folder) / snapshot.file_name(state.sequence)).write_bytes(data)
    return len(done)


def write_manifest(folder: Path, ids: npt.NDArray[np.int64], files: int) -> None:
    shutil.rmtree(folder / "manifest", ignore_errors=True)
    (folder / "manifest").mkdir()
    for number, part in enumerate(np.array_split(ids, files)):
        table = pa.table({"id": names(part), "uri": names(part)})
        path = folder / f"manifest/{files}-{number:05}.parquet"
        pq.write_table(table, path, row_group_size=50_000)


def names(numbers: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array([f"images/{number:012}.jpg" for number in numbers.tolist()])


def job(folder: Path) -> JobConfig:
    settings = {
        "job": "caption",
        "manifest": str(folder / "manifest"),
        "output": str(folder / "out"),
        "model": str(CHECKPOINT),
        "prompt": "What is it?",
    }
    return load_job(None, settings)


def log(folder: Path) -> Path:
    return Path(log_of(storage.resolve(str(folder / "out"))).path)


def peak() -> float:
    """Returns the peak memory of this process so far, in MiB; getrusage would add the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
