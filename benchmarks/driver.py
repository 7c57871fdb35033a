"""Measures the driver's memory by the number of rows: `python -m benchmarks.driver --rows ...`.

The stages are simulated; manifest, Ray Data, ledger and files are real. Each number of rows is a
run in a process of its own, whose memory and whose cluster's memory are sampled from outside.
Prints a table of peaks, and writes JSON with --json. Memory is resident and not shared, in MB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.schemas.job import load_job
from tests import processes

ROOT = Path(__file__).parents[1]
FILE_ROWS, GROUP_ROWS = 250_000, 16_384
MB = 1_000_000
SAMPLE_S = 0.25
# Words in process titles, and the names of the table.
PARTS = {
    "ray::Coordinator": "desk",
    "gcs_server": "gcs",
    "raylet/raylet": "raylet",
    "_FetchAndPrepare": "prepare",
    "_GenerateAndParse": "generate",
    "ray::Write": "write",
}
COLUMNS = ("rows", "seconds", "start", "planned", "driver", *PARTS.values(), "store")


def write_manifest(folder: Path, rows: int) -> Path:
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        numbers = np.arange(start, min(start + FILE_ROWS, rows))
        table = pa.table(
            {
                "id": pa.array([f"row-{index:010}" for index in numbers]),
                "uri": pa.array([f"s3://bucket/media/{index:010}.jpg" for index in numbers]),
            }
        )
        pq.write_table(table, folder / f"{number:05}.parquet", row_group_size=GROUP_ROWS)
    return folder


def measure(rows: int, batch_rows: int) -> dict[str, Any]:
    """Measures one run with a new manifest. Returns peaks in MB by part, and its own report."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_manifest(Path(folder) / "manifest", rows)
        settings = {
            "manifest": str(manifest),
            "output": str(Path(folder) / "out"),
            "model": str(CHECKPOINT),
            "prompt": CAPTION_PROMPT,
            "resources.batch_rows": batch_rows,
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.driver", "--child", json.dumps(settings)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        peaks = dict.fromkeys(["driver", *PARTS.values(), "store"], 0)
        while child.poll() is None:
            for part, size in _sizes(child.pid):
                peaks[part] = max(peaks[part], size)
            time.sleep(SAMPLE_S)
        if child.returncode:
            raise SystemExit(f"the run of {rows} rows failed; its output is above")
        figures = json.loads(child.communicate()[0].splitlines()[-1])
    assert figures["done"] == rows, figures
    return {"rows": rows, **figures, **{part: round(size / MB) for part, size in peaks.items()}}


def _sizes(driver: int) -> Iterator[tuple[str, int]]:
    yield "driver", processes.memory(driver, "RssAnon")
    for pid in processes.descendants(driver):
        title = processes.title(pid)
        for word, part in PARTS.items():
            if word in title.split(" --")[0]:
                yield part, processes.memory(pid, "RssAnon")
                if part == "raylet":
                    yield "store", processes.memory(pid, "RssShmem")
                break


def child(settings: dict[str, Any]) -> None:
    """Runs the measured driver, as the command line would."""
    from mediamill.pipeline.run import check, run
    from tests.soak.simulated import STAGES

    def own() -> int:
        return round(processes.memory(os.getpid(), "RssAnon") / MB)

    start = own()
    job = load_job(None, {"job": "caption", **settings})
    plan = check(job)
    planned = own()
    summary = run(job, plan, on_progress=lambda _: None, stages=STAGES)
    figures = {"done": summary.rows, "seconds": round(summary.seconds, 1)}
    print(json.dumps({**figures, "start": start, "planned": planned}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--batch-rows", type=int, default=256, help="as on a GPU")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child)
        return
    print("  ".join(f"{name:>9}" for name in COLUMNS))
    found = []
    for rows in options.rows:
        found.append(measure(rows, options.batch_rows))
        print("  ".join(f"{found[-1][name]:>9}" for name in COLUMNS), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
