"""Measures the cost of a resume: `python -m benchmarks.resume`, with simulated ledgers.

A ledger of 10,000 manifest files has 97 % of its rows finished in runs, as write tasks leave them,
or every second row at random, the worst case. It is on the disk as a run leaves it: a snapshot, and
the maximum number of records before the next one. A process of its own then loads it and plans the
read tasks. Memory is the peak of that process above its imports. The manifest's files are a list
only.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ray import cloudpickle

from mediamill.pipeline.ledger import ledger, snapshot
from mediamill.pipeline.ledger.state import KnownFile, LedgerState, text_of
from mediamill.pipeline.manifest.manifest import Manifest, ManifestFile
from mediamill.pipeline.stages.read import ManifestDatasource
from mediamill.pipeline.storage import storage
from mediamill.schemas.manifest import check_manifest_schema

FILES = 10_000
CASES = (
    (10_000_000, "runs"),
    (100_000_000, "runs"),
    (1_000_000_000, "runs"),
    (1_000_000_000, "random"),
)
GROUP_ROWS = 50_000
MIB = 1 << 20
COLUMNS = (
    ("rows", "rows", "{:>13,}"),
    ("bits", "finished", "{:>8}"),
    ("snapshot_mib", "snapshot MiB", "{:>12.1f}"),
    ("dump_s", "dump s", "{:>6.2f}"),
    ("records", "records after", "{:>13,}"),
    ("load_s", "load s", "{:>6.2f}"),
    ("plan_s", "plan s", "{:>6.2f}"),
    ("tasks", "read tasks", "{:>10,}"),
    ("tasks_mib", "tasks MiB", "{:>9.1f}"),
    ("peak_mib", "peak MiB", "{:>8.0f}"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, help="only cases of at most so many rows")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--make", nargs=3, metavar=("ROWS", "BITS", "DIR"), help="one ledger")
    parser.add_argument("--load", nargs=2, metavar=("ROWS", "DIR"), help="one resume")
    wanted = parser.parse_args()
    if wanted.make:
        print(json.dumps(make(int(wanted.make[0]), wanted.make[1], wanted.make[2])))
        return
    if wanted.load:
        print(json.dumps(resume(int(wanted.load[0]), wanted.load[1])))
        return
    print("  ".join(title.rjust(len(form.format(0))) for _, title, form in COLUMNS))
    found = []
    for rows, bits in CASES:
        if wanted.rows is None or rows <= wanted.rows:
            found.append(measure(rows, bits))
            print("  ".join(form.format(found[-1][key]) for key, _, form in COLUMNS), flush=True)
    if wanted.json:
        wanted.json.parent.mkdir(parents=True, exist_ok=True)
        wanted.json.write_text(json.dumps(found, indent=1))


def measure(rows: int, bits: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        made = child("--make", str(rows), bits, folder)
        return {"rows": rows, "bits": bits, **made, **child("--load", str(rows), folder)}


def child(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.resume", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def make(rows: int, bits: str, folder: str) -> dict[str, Any]:
    """Writes the ledger below `folder`."""
    rng = np.random.default_rng(0)
    each = rows // FILES
    state = LedgerState()
    files = [{"number": n, **vars(known(n, each))} for n in range(FILES)]
    state.apply({"kind": "open", "version": ledger.VERSION, "fingerprint": "", "parts": {}})
    state.apply({"kind": "start", "run": "run", "rows_per_file": 10_000, "files": files})
    for bitmap in state.done:
        found = finished(rng, each) if bits == "runs" else rng.random(each) < 0.5
        bitmap[:] = np.packbits(found, bitorder="little")
    state.counts.ok = sum(int(np.bitwise_count(bitmap).sum()) for bitmap in state.done)
    log = Path(folder) / ledger.HIDDEN / "log"
    log.mkdir(parents=True)
    started = time.perf_counter()
    data = snapshot.dump(state)
    seconds = time.perf_counter() - started
    (log / snapshot.file_name(state.sequence)).write_bytes(data)
    records = 0
    while not snapshot.due(state, records):
        records += 1
        (log / f"{state.sequence + records:012}.json").write_text(json.dumps(commit(rng, each)))
    return {"snapshot_mib": len(data) / MIB, "dump_s": seconds, "records": records}


def resume(rows: int, folder: str) -> dict[str, Any]:
    """Loads the ledger and plans the read tasks that Ray would get."""
    manifest = Manifest("/manifest", tuple(listed(rows // FILES)), SCHEMA, pa.schema([]))
    before = peak()
    started = time.perf_counter()
    state = ledger.load(storage.resolve(folder))
    loaded = time.perf_counter()
    tasks = ManifestDatasource(manifest, state).get_read_tasks(1)
    planned = time.perf_counter()
    highest = peak()
    return {
        "load_s": loaded - started,
        "plan_s": planned - loaded,
        "tasks": len(tasks),
        "tasks_mib": sum(len(cloudpickle.dumps(task)) for task in tasks) / MIB,
        "peak_mib": highest - before,
    }


def finished(rng: np.random.Generator, rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Returns 97 % of the rows, in runs of 64 to 4096."""
    count = rows // 1000 + 20  # on average, they are twice as long as needed
    lengths = np.stack([rng.integers(64, 4097, count), rng.integers(1, 129, count)], axis=1)
    values = np.tile([True, False], count)
    return np.roll(np.repeat(values, lengths.ravel())[:rows], int(rng.integers(rows)))


def commit(rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Returns the rows that a write task finishes: of one file, possibly finished already."""
    first = int(rng.integers(rows))
    indices = text_of(np.arange(first, min(first + 200, rows)))
    entry = {"token": "t", "rows": {str(rng.integers(FILES)): indices}, "counts": {}, "parts": []}
    return {"kind": "commit", "run": "run", "commits": [entry], "groups": [], "published": []}


def known(number: int, rows: int) -> KnownFile:
    digest = f"{number:032x}"
    return KnownFile(f"day={number % 365}/{number:05}.parquet", rows, digest, digest, groups(rows))


def listed(rows: int) -> Iterator[ManifestFile]:
    for file in (known(number, rows) for number in range(FILES)):
        place = storage.resolve(f"/manifest/{file.name}")
        yield ManifestFile(file.name, place, file.row_groups, {}, file.stamp, file.digest)


def groups(rows: int) -> tuple[int, ...]:
    return tuple(min(GROUP_ROWS, rows - first) for first in range(0, rows, GROUP_ROWS))


def peak() -> float:
    """Returns the peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


SCHEMA = check_manifest_schema(pa.schema([("id", pa.string()), ("uri", pa.string())]), "simulated")


if __name__ == "__main__":
    main()
