"""Measures what a block costs each process of a run: `python -m benchmarks.scale_driver`.

The stages are simulated; manifest, Ray Data, coordinator, ledger and files are real. Prints CPU
seconds: they limit a serial process, and other load changes them little; `machine_ms` is the time
of a fixed piece of work meanwhile. The parts are the scheduling thread (loop), the driver's thread
that fetches metadata (fetcher), its other threads, the coordinator, Ray's control service (gcs),
the raylet and the workers. Each number of rows in a call is a run in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.driver import write_manifest
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.schemas.job import load_job
from tests import processes
from tests.soak.simulated import PATCH_BYTES

ROOT = Path(__file__).parents[1]
SAMPLE_S, STARTS = 0.2, 4
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PARTS = {
    "ray::Coordinator": "desk",
    "gcs_server": "gcs",
    "raylet/raylet": "raylet",
    "_FetchAndPrepare": "prepare",
    "_GenerateAndParse": "generate",
    "ray::ReadManifest": "read",
    "ray::StreamingRepartition": "repartition",
    "ray::Write": "write",
}
COLUMNS = (
    *("loop", "fetcher", "other", "desk", "gcs", "raylet"),
    *("prepare", "generate", "repartition", "write"),
)


def cpu_s(path: Path) -> float:
    """Returns the CPU seconds of a process or thread, by its folder in /proc; 0 after its end."""
    try:
        fields = (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * TICK_S


def start_ray(cpus: int) -> None:
    """Starts a local cluster with that many CPUs; a busy machine may need several tries."""
    import ray

    # As pipeline/ray_cluster/cluster.py sets it for a local cluster.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    for attempt in range(STARTS):
        try:
            ray.init(
                num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
        except Exception:
            ray.shutdown()
            if attempt == STARTS - 1:
                raise
        else:
            return


def machine_ms() -> float:
    """Returns the CPU time of a fixed piece of Python: 13 ms on this machine without other load."""
    found = []
    for _ in range(9):
        started = time.thread_time()
        sum(number & 255 for number in range(400_000))
        found.append(time.thread_time() - started)
    return 1000 * sorted(found)[4]


class Meter(threading.Thread):
    """Samples the CPU seconds of the thread that fetches metadata and of all child processes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._threads: dict[int, float] = {}
        self._by_process: dict[int, tuple[str, float]] = {}
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.sample()

    def sample(self) -> None:
        for thread in threading.enumerate():
            if "etadata" in thread.name and thread.native_id is not None:
                used = cpu_s(Path(f"/proc/self/task/{thread.native_id}"))
                self._threads[thread.native_id] = used or self._threads.get(thread.native_id, 0.0)
        for pid in processes.descendants(os.getpid()):
            title = processes.title(pid).split(" --")[0]
            part = next((part for word, part in PARTS.items() if word in title), None)
            if part is not None:
                used = cpu_s(Path(f"/proc/{pid}"))
                self._by_process[pid, part] = max(used, self._by_process.get((pid, part), 0.0))

    def stop(self) -> dict[str, float]:
        self._over.set()
        self.join()
        found = dict.fromkeys(PARTS.values(), 0.0)
        for (_, part), used in self._by_process.items():
            found[part] += used
        return {"fetcher": sum(self._threads.values()), **found}


def measure(
    rows: int,
    call_rows: int,
    workers: int,
    sleeps: tuple[float, float],
    row_bytes: int = PATCH_BYTES,
    rows_per_file: int = 4096,
) -> dict[str, Any]:
    """Measures one run. Returns CPU seconds by part, wall seconds, blocks and scheduling steps.

    sleeps: seconds of a call of prepare, and of a block in an engine.
    row_bytes: of the patches of a row.
    """
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_manifest(Path(folder) / "manifest", rows)
        settings = {
            "manifest": str(manifest),
            "output": str(Path(folder) / "out"),
            "model": str(CHECKPOINT),
            "prompt": CAPTION_PROMPT,
            "resources.batch_rows": 4 * call_rows,
            "resources.prepare_workers": workers,
            "resources.replicas": workers,
            "rows_per_file": rows_per_file,
        }
        command = [sys.executable, "-m", "benchmarks.scale_driver", "--child"]
        done = subprocess.run(
            [*command, json.dumps([settings, [*sleeps, row_bytes]])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert figures["done"] == rows, figures
    return {"rows": rows, "call_rows": call_rows, "workers": workers, "sleeps": sleeps, **figures}


def child(settings: dict[str, Any], stages: tuple[float, float, int]) -> None:
    """Runs the measured driver, as the command line would."""
    import ray
    from ray.data._internal.execution import streaming_executor

    from benchmarks.scale_stages import sleeping
    from mediamill.pipeline.ray_cluster.cluster import ray_cluster
    from mediamill.pipeline.run import check, run

    steps: list[float] = []
    whole = streaming_executor.StreamingExecutor._scheduling_loop_step

    def step(self: Any, topology: Any) -> bool:
        started = time.thread_time()
        goes_on = bool(whole(self, topology))
        steps.append(time.thread_time() - started)
        return goes_on

    streaming_executor.StreamingExecutor._scheduling_loop_step = step
    job = load_job(None, {"job": "caption", **settings})
    plan = check(job)
    meter = Meter()
    cpus = 2 * (settings["resources.prepare_workers"] + settings["resources.replicas"]) + 2
    start_ray(cpus)
    with ray_cluster(None):
        meter.start()
        before = time.process_time()
        started = time.monotonic()
        summary = run(job, plan, on_progress=lambda _: None, stages=sleeping(*stages))
        seconds, used = time.monotonic() - started, time.process_time() - before
        figures = meter.stop()
    ray.shutdown()
    call_rows = settings["resources.batch_rows"] // 4
    figures["loop"] = sum(steps)
    figures["other"] = used - figures["loop"] - figures["fetcher"]
    print(
        json.dumps(
            {
                "done": summary.rows,
                "seconds": seconds,
                "blocks": -(-summary.rows // call_rows),
                "steps": len(steps),
                "machine_ms": machine_ms(),
                **figures,
            }
        )
    )


def slope(few: dict[str, Any], many: dict[str, Any]) -> dict[str, float]:
    """Returns the CPU milliseconds of one further block in each part; the start cancels out."""
    blocks = many["blocks"] - few["blocks"]
    return {name: 1000 * (many[name] - few[name]) / blocks for name in COLUMNS}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs=2, default=(500, 2500), help="few and many")
    parser.add_argument("--call-rows", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--workers", type=int, default=1, help="of each pool")
    parser.add_argument("--sleeps", type=float, nargs=2, default=(0.0, 0.0))
    parser.add_argument("--row-bytes", type=int, default=PATCH_BYTES, help="of its patches")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(*options.child)
        return
    print(
        f"ms of CPU a further block; load {os.getloadavg()[0]:.1f}, machine {machine_ms():.1f} ms"
    )
    print("  ".join(f"{name:>11}" for name in ("call rows", "seconds", "steps", *COLUMNS)))
    found = []
    for call_rows in options.call_rows:
        runs = [
            measure(
                blocks * call_rows,
                call_rows,
                options.workers,
                tuple(options.sleeps),
                options.row_bytes,
            )
            for blocks in options.blocks
        ]
        found.append({"call_rows": call_rows, "runs": runs, "each_ms": slope(*runs)})
        each = "  ".join(f"{value:>11.2f}" for value in found[-1]["each_ms"].values())
        last = runs[-1]
        print(f"{call_rows:>11}  {last['seconds']:>11.1f}  {last['steps']:>11}  {each}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
