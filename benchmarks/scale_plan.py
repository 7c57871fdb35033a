"""Measures what a first plan costs a row and a file: `python -m benchmarks.scale_plan --rows ...`.

The manifest is on the local disk; scale_requests.py counts the requests to an object store. Each
plan runs in a process of its own. Prints its CPU seconds (of all threads), wall seconds, peak
memory above its imports, and the size of the stored ids.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.driver import write_manifest
from benchmarks.scale_driver import ROOT, machine_ms
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT


def measure(rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_manifest(Path(folder) / "manifest", rows)
        settings = {
            "job": "caption",
            "manifest": str(manifest),
            "output": str(Path(folder) / "out"),
            "model": str(CHECKPOINT),
            "prompt": CAPTION_PROMPT,
        }
        command = [sys.executable, "-m", "benchmarks.scale_plan", "--child", json.dumps(settings)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        kept = sum(one.stat().st_size for one in (Path(folder) / "out").rglob("*") if one.is_file())
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"rows": rows, **figures, "kept_bytes_row": kept / rows}


def child(settings: dict[str, Any]) -> dict[str, float]:
    from mediamill.pipeline.plan import check
    from mediamill.schemas.job import load_job

    job = load_job(None, settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, used = time.monotonic(), time.process_time()
    plan = check(job)
    plan.new_ids.save()
    return {
        "cpu_s": time.process_time() - used,
        "wall_s": time.monotonic() - started,
        "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 8_000_000])
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(child(options.child)))
        return
    print(f"load {os.getloadavg()[0]:.1f}, machine {machine_ms():.1f} ms")
    found = []
    for rows in options.rows:
        found.append(measure(rows))
        last = found[-1]
        print(
            f"{rows:>11,} rows  {1e6 * last['cpu_s'] / rows:.2f} us of CPU a row  "
            f"{last['wall_s']:.1f} s  {last['peak_mib']:.0f} MiB  "
            f"{last['kept_bytes_row']:.1f} bytes a row kept",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
