"""Compares forecasts with the runs that they foretell, on drawn data sets and the built-in model.

    python -m benchmarks.forecast [NAME ...] [--rows N] [--json FILE] [--stages]

Each job is forecast, then really run by the command line, one after the other. Tokens are to be
within 2 % of the run; the time, within 25 %, only counts on a machine without other work. With
--stages all rows go through the job's real stages in this process, without Ray: no times then.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mediamill.pipeline.forecast.forecast import Forecast, ForecastOptions, forecast
from mediamill.schemas.job import load_job

ROWS = 1200
_COLOURS = ("red", "green", "blue", "yellow", "black", "white")


@dataclass(frozen=True)
class DataSet:
    """Rows of a manifest, and the keys of the job beside them."""

    rows: list[dict[str, Any]]
    keys: Mapping[str, object]
    job: str = "caption"


def picture(path: Path, rng: np.random.Generator, width: int, height: int) -> Path:
    """Writes a JPEG of smooth noise with a square."""
    coarse = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    side = min(width, height) // 3
    image.paste(_COLOURS[int(rng.integers(len(_COLOURS)))], (side, side, 2 * side, 2 * side))
    image.save(path, "JPEG", quality=85)
    return path


def clip(path: Path, rng: np.random.Generator, seconds: float) -> Path:
    """Writes an H.264 film of a square that moves."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 192, 144, "yuv420p"
        stream.options = {"preset": "ultrafast", "threads": "1"}
        colour = rng.integers(0, 256, 3)
        for number in range(max(1, round(10 * seconds))):
            frame = np.full((144, 192, 3), 90, np.uint8)
            left = (3 * number) % 150
            frame[50:90, left : left + 40] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def _uniform(folder: Path, rng: np.random.Generator, rows: int) -> DataSet:
    sizes = ((400, 300), (336, 336), (300, 400))
    made = [
        {"id": f"{n}", "uri": str(picture(folder / f"{n}.jpg", rng, *sizes[n % 3]))}
        for n in range(rows)
    ]
    return DataSet(made, {"prompt": "Describe the picture."})


def _skewed(folder: Path, rng: np.random.Generator, rows: int) -> DataSet:
    made = []
    for n in range(rows):
        side = int(rng.integers(28, 90))
        if rng.random() < 0.02:
            side = int(rng.integers(600, 1500))
        width, height = side, max(28, int(side * rng.uniform(0.5, 1.0)))
        made.append({"id": f"{n}", "uri": str(picture(folder / f"{n}.jpg", rng, width, height))})
    keys = {"prompt": "Describe the picture.", "image.min_pixels": 784}
    return DataSet(made, keys | {"image.max_pixels": 500 * 784})


def _videos(folder: Path, rng: np.random.Generator, rows: int) -> DataSet:
    seconds = np.clip(rng.lognormal(1.2, 0.9, max(40, rows // 6)), 0.5, 60)
    made = [
        {"id": f"{n}", "uri": str(clip(folder / f"{n}.mp4", rng, float(length)))}
        for n, length in enumerate(seconds)
    ]
    return DataSet(made, {"prompt": "Describe the video."})


def _broken(folder: Path, rng: np.random.Generator, rows: int) -> DataSet:
    made = _uniform(folder, rng, rows).rows
    for row in made:
        kind = rng.random()
        path = Path(row["uri"])
        if kind < 0.04:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif kind < 0.07:
            path.write_bytes(b"<html>404 not found</html>")
        elif kind < 0.1:
            path.unlink()
    return DataSet(made, {"prompt": "Describe the picture."})


def _row_prompts(folder: Path, rng: np.random.Generator, rows: int) -> DataSet:
    made = _uniform(folder, rng, rows).rows
    for row in made:
        words = int(np.clip(rng.lognormal(2.5, 1.0), 2, 300))
        text = " ".join(rng.choice(["red", "square", "left", "of", "the", "circle"], words))
        row["prompt"] = f"{text}: describe the picture."
    return DataSet(made, {})


def _several(folder: Path, rng: np.random.Generator, rows: int) -> DataSet:
    made = _uniform(folder, rng, rows // 2).rows
    prompts = {"caption": "Describe the picture.", "count": "How many shapes are there?"}
    return DataSet(made, {"prompts": prompts})


def _windows(folder: Path, rng: np.random.Generator, rows: int) -> DataSet:
    made = _videos(folder, rng, rows // 3).rows
    keys = {"prompt": "Describe the video.", "annotate.window_s": 4}
    return DataSet(made, keys, "annotate")


SETS: dict[str, Callable[[Path, np.random.Generator, int], DataSet]] = {
    "uniform": _uniform,
    "skewed": _skewed,
    "videos": _videos,
    "broken": _broken,
    "prompts": _row_prompts,
    "several": _several,
    "windows": _windows,
}


def compare(name: str, folder: Path, rows: int, seconds: float, stages: bool) -> dict[str, Any]:
    """Draws a data set, forecasts the job, runs it, and returns both with their differences."""
    media = folder / name
    media.mkdir(parents=True)
    made = SETS[name](media, np.random.default_rng(7), rows)
    manifest = folder / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(made.rows), manifest, row_group_size=256)
    keys = {"manifest": str(manifest), "output": str(folder / f"{name}-out"), **made.keys}
    keys |= {"model": "built-in", "resources.cache": str(folder / "cache")}
    options = ForecastOptions(seconds=seconds, again=True)
    started = time.monotonic()
    # In a process of its own, as for a user: the start of a job is told from its imports.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        job = load_job(None, keys, job=made.job)
        planned = process.submit(forecast, job, options).result()
    plan_s = time.monotonic() - started
    load = os.getloadavg()[0]
    started = time.monotonic()
    summary = _all_rows(made.job, keys) if stages else _run(made.job, keys)
    wall = time.monotonic() - started
    return _compared(name, planned, summary, plan_s, wall, load)


def _run(job: str, keys: Mapping[str, object]) -> dict[str, Any]:
    words = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    words = [word for word in words if not word.startswith(("manifest=", "output="))]
    code = "import sys; from mediamill.jobs.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, job, str(keys["manifest"]), str(keys["output"])]
    done = subprocess.run([*command, *words, "--json"], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr[-2000:])
    summary: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return summary


def _all_rows(job: str, keys: Mapping[str, object]) -> dict[str, Any]:
    """The totals of all rows, from the real stages and the engine, as a run's summary has them."""
    options = ForecastOptions(seconds=1e9, run_rows=10**9, again=True)
    exact = forecast(load_job(None, keys, job=job), options)
    sample = exact.sample
    return {
        "rows": round(exact.units.value),
        "prompt_tokens": round(sample.prompt_tokens.value),
        "visual_tokens": round(sample.visual_tokens.value),
        "output_tokens": round(exact.output_tokens.value),
        "errors": {code: round(one.value) for code, one in sample.errors.items()},
        "seconds": 0.0,
    }


def _compared(
    name: str, planned: Forecast, summary: dict[str, Any], plan_s: float, wall: float, load: float
) -> dict[str, Any]:
    sample = planned.sample
    result: dict[str, Any] = {
        "name": name,
        "measured": sample.rows,
        "plan_s": plan_s,
        "load": [load, os.getloadavg()[0]],
    }
    for key, estimate in (
        ("prompt_tokens", sample.prompt_tokens),
        ("visual_tokens", sample.visual_tokens),
        ("output_tokens", planned.output_tokens),
        ("rows", planned.units),
    ):
        true = summary[key]
        off = estimate.value / true - 1 if true else 0.0
        inside = estimate.low - 0.5 <= true <= estimate.high + 0.5
        result[key] = {"plan": estimate.value, "run": true, "off": off, "inside": inside}
    tokens = sample.prompt_tokens.value + planned.output_tokens.value
    true = summary["prompt_tokens"] + summary["output_tokens"]
    result["tokens_off"] = tokens / true - 1
    errors = sum(one.value for one in sample.errors.values())
    result["errors"] = {"plan": errors, "run": sum(summary["errors"].values())}
    if planned.times is not None and summary["seconds"]:
        seconds = planned.times.seconds
        result["seconds"] = {
            "plan": seconds.value,
            "start": planned.times.start_s.value,
            "run": summary["seconds"],
            "wall": wall,
            "off": seconds.value / summary["seconds"] - 1,
            "inside": seconds.low <= summary["seconds"] <= seconds.high,
            "binds": planned.times.binds,
            "stages": {name: one.value for name, one in planned.times.stages.items()},
        }
    return result


def line(result: Mapping[str, Any]) -> str:
    """Returns the line of the table for one data set."""
    seconds = result.get("seconds", {})
    cells = [
        f"{result['name']:9}",
        f"{result['measured']:5} of {result['rows']['run']:5}",
        *(
            f"{100 * result[key]['off']:+6.2f} %"
            for key in ("prompt_tokens", "visual_tokens", "output_tokens")
        ),
        f"{100 * result['tokens_off']:+6.2f} %",
        f"{result['errors']['plan']:6.1f}/{result['errors']['run']:<4}",
        f"{seconds.get('plan', 0):6.0f} s {seconds.get('run', 0):6.0f} s",
        f"load {result['load'][0]:.0f}-{result['load'][1]:.0f}",
    ]
    return "  ".join(cells)


def main() -> None:
    """Compares the data sets of the command line, and prints a line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SETS))
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--stages", action="store_true", help="compare with the stages, not a run")
    options = parser.parse_args()
    print("set, measured rows, off by: prompt, visual, output, all tokens; errors; time: plan, run")
    results = []
    for name in options.names or SETS:
        with tempfile.TemporaryDirectory() as folder:
            made = compare(name, Path(folder), options.rows, options.seconds, options.stages)
            results.append(made)
        print(line(results[-1]), flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
