"""Measures the engine on a GPU in at most ten minutes: `make bench-gpu`.

Measures what the device can do, whole jobs, and the parts against the device's limits. The networks
have published shapes and random weights, so nothing is downloaded. Prints tables and writes JSON. A
part that fails is named in its place, and the others go on. `--cpu` is a dry run with a miniature
network.
"""

import argparse
import gc
import json
import os
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_jobs, gpu_parts
from benchmarks.gpu_jobs import Job, Preparers
from benchmarks.gpu_parts import MINIATURE, Row, Sizes
from benchmarks.gpu_setup import Clock, built
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.layers.optimize import optimize_for_inference
from mediamill.pipeline.forecast import roofline


class Report:
    """Collects rows by section, prints each finished section, and enforces the time limit."""

    def __init__(self, seconds: float) -> None:
        self.sections: dict[str, list[Row]] = {}
        self._end = time.monotonic() + seconds

    def add(self, name: str, work: Callable[[], list[Row]]) -> None:
        """Runs one section, unless the time is over."""
        left = self._end - time.monotonic()
        if left < 0:
            rows: list[Row] = [{"what": "left out: the time is over"}]
        else:
            began = time.monotonic()
            try:
                rows = work()
            except Exception as error:  # noqa: BLE001 - the other parts must still run
                traceback.print_exc()
                rows = [{"what": f"failed: {type(error).__name__}: {error}"[:300]}]
            rows.append({"what": f"(took {time.monotonic() - began:.1f} s)"})
        self.sections[name] = rows
        print(f"\n## {name}\n{table(rows)}", flush=True)


def table(rows: list[Row]) -> str:
    """Returns rows as text, one column for each key, in order of first appearance."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "stats"))
    cells = [keys, *([_text(key, row.get(key, "")) for key in keys] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _text(key: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if key == "of the ceiling":
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def described(device: torch.device) -> dict[str, Any]:
    """Returns the machine and the versions."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if device.type == "cuda":
        one = torch.cuda.get_device_properties(device)
        found |= {"gpu": one.name, "memory GiB": round(one.total_memory / 2**30, 1)}
        found["cuda"] = torch.version.cuda
    return found


def parts(
    report: Report, shape: str, model: Qwen2VL, clock: Clock, top: roofline.Ceilings, sizes: Sizes
) -> None:
    for name, work in (
        ("products", gpu_parts.products),
        ("vision", gpu_parts.vision),
        ("prefill", gpu_parts.prefill),
        ("decode", gpu_parts.decode),
        ("decode attention", gpu_parts.paged_kernels),
    ):
        report.add(f"{shape}: {name}", lambda work=work: work(model, clock, top, sizes))  # type: ignore[misc]


def jobs_of(options: argparse.Namespace) -> list[Job]:
    if options.cpu:
        return [Job((84, 56), 6, 5), Job((56, 56), 2, 3, pictures=4)]
    scale = 1 if options.quick else 4
    return [
        Job((1024, 768), 128 * scale, 96),
        Job((448, 448), 256 * scale, 96),
        # Four different pictures of 1024 x 1024 a request, 128 new tokens.
        Job((1024, 1024), 16 * scale, 128, pictures=4),
    ]


def measured(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device("cpu" if options.cpu else "cuda")
    dtype = torch.float32 if options.cpu else torch.bfloat16
    report, clock = Report(options.seconds), Clock(device, options.quick or options.cpu)
    sizes = MINIATURE if options.cpu else Sizes()
    if options.quick and not options.cpu:
        sizes = Sizes(pictures=Sizes().pictures[:2], batches=(64, 256))
    found = {"machine": described(device), "sections": report.sections}
    print(json.dumps(found["machine"], indent=1))
    top = roofline.Ceilings(1.0, 1.0)

    def ceilings() -> list[Row]:
        nonlocal top
        rows, top = gpu_parts.ceilings(clock, dtype, sizes)
        return rows

    report.add("ceilings", ceilings)
    workers = options.workers or max(1, min(15, (os.cpu_count() or 2) - 1))
    preparers = Preparers(workers)
    rows = 4 if options.cpu else 256
    try:
        for shape in ["miniature"] if options.cpu else options.shapes.split(","):
            model = optimize_for_inference(built(shape, device, dtype))
            jobs = jobs_of(options)

            def whole(model: Qwen2VL = model, jobs: list[Job] = jobs) -> list[Row]:
                found = []
                for i, job in enumerate(jobs):
                    found.append(gpu_jobs.ours(model, job, preparers, rows, top, i * 10**4))
                    _free()
                return found

            def theirs(
                model: Qwen2VL = model, shape: str = shape, jobs: list[Job] = jobs
            ) -> list[Row]:
                few = Job(jobs[0].size, 4 if options.cpu else 64, jobs[0].new)
                at_once = 2 if options.cpu else 32
                return [gpu_jobs.reference(model, shape, few, preparers, at_once)]

            # Whole jobs first: they matter most if time is short.
            report.add(f"{shape}: whole jobs", whole)
            _free()
            report.add(f"{shape}: transformers", theirs)
            _free()
            parts(report, shape, model, clock, top, sizes)
            _free()
            del model, whole, theirs
            _free()
    finally:
        preparers.close()
    return found


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and pictures")
    parser.add_argument("--cpu", action="store_true", help="a dry run with a miniature network")
    parser.add_argument("--shapes", default="2B,7B", help="of the networks")
    parser.add_argument("--seconds", type=float, default=540, help="begin no part after this time")
    parser.add_argument("--workers", type=int, help="processes that prepare pictures")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        parser.error("there is no GPU; --cpu makes a dry run")
    found = measured(options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))
        print(f"\nwrote {options.json}")


if __name__ == "__main__":
    main()
