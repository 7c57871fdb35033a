"""Measures the rate of a coordinator: `python -m benchmarks.scale_coordinator`.

The coordinator is one process that receives every call of every actor. Clients make the calls of a
pool, for blocks of some numbers of rows. Then rows of write tasks are committed to a ledger on the
local disk. Prints the CPU seconds of the coordinator, which limit its rate on any machine, the
calls a second on this one, and the growth of the log.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale_driver import cpu_s, machine_ms, start_ray
from mediamill.pipeline.coordinator.failure_policy import PREPARE
from mediamill.pipeline.coordinator.quarantine import Quarantine, WorkerId
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.log import log_of
from mediamill.pipeline.ledger.state import Counts, KnownFile, LedgerState, Part
from mediamill.pipeline.storage import storage
from mediamill.schemas.job import Limits, Resources
from tests import processes

RESOURCES = Resources(max_engine_failures=3)
LIMITS = Limits(max_error_rate=0.5, error_rate_rows=1000)
CALLS = ("begin", "done", "add")
AT_ONCE = 32  # calls of one client in flight


def calls(clients: int, call_rows: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Returns the cost of one call of the coordinator, for each number of rows in a call."""
    import ray

    start_ray(2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _calls(folder, clients, call_rows, seconds)
    finally:
        ray.shutdown()


def _calls(
    folder: str, clients: int, call_rows: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    import ray

    from mediamill.pipeline.coordinator.coordinator import start_coordinator
    from mediamill.pipeline.coordinator.guarded_stage import CoordinatorCalls

    @ray.remote(num_cpus=0)
    class Client:
        def __init__(self, coordinator: Any) -> None:
            self._coordinator, self._worker = (
                coordinator,
                CoordinatorCalls(coordinator).worker_id(PREPARE),
            )
            CoordinatorCalls(coordinator).enter(self._worker)

        def ask(self, what: str, rows: int, seconds: float) -> int:
            """Keeps some calls in flight, like many clients: the coordinator is never idle."""
            found, end = 0, time.monotonic() + seconds
            while time.monotonic() < end:
                ray.get([self._one(what, found + turn, rows) for turn in range(AT_ONCE)])
                found += AT_ONCE
            return found

        def _one(self, what: str, turn: int, rows: int) -> Any:
            named = [(1, turn * rows + index) for index in range(rows)]
            if what == "begin":
                return self._coordinator.begin.remote(self._worker, named)
            if what == "done":
                return self._coordinator.done.remote(self._worker, named, {})
            return self._coordinator.add.remote({"prepared": rows})

    output = str(Path(folder) / "out")
    coordinator = start_coordinator(output, _begun(output, 1, 1).run or "", RESOURCES, LIMITS)
    asking = [Client.remote(coordinator) for _ in range(clients)]
    ray.get([one.ask.remote("add", 1, 0.5) for one in asking])
    pid = next(
        pid
        for pid in processes.descendants(os.getpid())
        if "ray::Coordinator" in processes.title(pid)
    )
    found = []
    for what in CALLS:
        for rows in call_rows if what in ("begin", "done") else call_rows[:1]:
            before, started = cpu_s(Path(f"/proc/{pid}")), time.monotonic()
            number = sum(ray.get([one.ask.remote(what, rows, seconds) for one in asking]))
            took, used = time.monotonic() - started, cpu_s(Path(f"/proc/{pid}")) - before
            each = {"call": what, "rows": rows, "cpu_us": 1e6 * used / number}
            found.append({**each, "calls_s": number / took, "busy": used / took})
    return found


def _begun(output: str, files: int, file_rows: int) -> LedgerState:
    state = LedgerState()
    known = [KnownFile(f"{number}.parquet", file_rows, "") for number in range(files)]
    bound = {"fingerprint": "", "parts": {}, "layout": {}}
    ledger.begin(storage.resolve(output), state, "run", bound, known, 4096)
    return state


def commits(rows: int, folders: int, span: int, number: int, total: int) -> dict[str, Any]:
    """Measures commits of `rows` rows each in spans of `span`, one by one, in this process.

    folders: into which the rows fall. total: rows of the manifest.
    """
    with tempfile.TemporaryDirectory() as folder:
        file_rows = 1_000_000
        _begun(folder, -(-total // file_rows), file_rows)
        writer = ledger.Ledger(folder, "run")
        cpu, started = time.process_time(), time.monotonic()
        asyncio.run(_commit_all(writer, rows, folders, span, number, total // file_rows, file_rows))
        used, took = time.process_time() - cpu, time.monotonic() - started
        log = Path(log_of(storage.resolve(folder)).path)
        sizes = [path.stat().st_size for path in log.glob("*.json")]
        assert not any(log.glob("*.snapshot")), "too many commits: some records are gone"
        return {
            "rows": rows,
            "folders": folders,
            "cpu_ms": 1000 * used / number,
            "wall_ms": 1000 * took / number,
            "bytes": sum(sizes) / number,
        }


async def _commit_all(
    writer: ledger.Ledger,
    rows: int,
    folders: int,
    span: int,
    number: int,
    files: int,
    file_rows: int,
) -> None:
    spans, folders = rows // span, min(rows, folders)
    for turn in range(number):
        # Concurrent read tasks interleave their blocks.
        at = np.arange(spans)
        where, start = at % files, (turn * spans + at) // files * span
        named = {
            int(file): np.concatenate([np.arange(one, one + span) for one in start[where == file]])
            for file in np.unique(where)
        }
        assert max(indices.max() for indices in named.values()) < file_rows
        token = uuid.uuid4().hex
        each = rows // folders
        parts = tuple(
            (f"date={index:010}", Part(token, index * 9999, 9999, 0, each))
            for index in range(folders)
        )
        if not await writer.finished(named):
            answer = await writer.commit(ledger.Commit(token, named, Counts(ok=rows), parts))
            while answer.groups:
                answer = await writer.published([group.name for group in answer.groups])


def in_work(rows: int, call_rows: int) -> dict[str, float]:
    """Returns the coordinator's memory for rows in flight, and the time of `begin` and `done`."""
    quarantine = Quarantine(lambda _: True)
    before = processes.memory(os.getpid(), "RssAnon")
    who = [WorkerId(PREPARE, f"{n:032}", "process", "node") for n in range(-(-rows // call_rows))]
    started = time.process_time()
    for number, one in enumerate(who):
        named = [(1, number * call_rows + index) for index in range(call_rows)]
        quarantine.begin(one, named)
    begun = time.process_time()
    size = processes.memory(os.getpid(), "RssAnon") - before
    for number, one in enumerate(who):
        quarantine.done(one, [(1, number * call_rows + index) for index in range(call_rows)])
    done = time.process_time()
    return {
        "rows": rows,
        "bytes_row": size / rows,
        "begin_us": 1e6 * (begun - started) / len(who),
        "done_us": 1e6 * (done - begun) / len(who),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--call-rows", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each kind of call")
    parser.add_argument("--commits", type=int, default=100)
    parser.add_argument("--rows", type=int, default=100_000_000, help="of the ledger's manifest")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    print(f"load {os.getloadavg()[0]:.1f}, machine {machine_ms():.1f} ms")
    found: dict[str, list[dict[str, Any]]] = {"work": [in_work(1_000_000, 64)]}
    found["commits"] = [
        commits(4096, folders, 64, options.commits, options.rows) for folders in (1, 30, 365)
    ]
    found["calls"] = calls(options.clients, options.call_rows, options.seconds)
    for rows in found.values():
        for row in rows:
            print("  ".join(f"{key} {_short(value)}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    sys.stdout.flush()


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
