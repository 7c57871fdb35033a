"""Compares engines on one CPU thread: `python -m benchmarks.engine`, a table and a JSON file.

Ours, transformers' generate() and, with --vllm, vLLM answer the same fresh pictures in turn
(A B C A B C). Prints medians of CPU-seconds. Absolute figures drift with the machine's load, ratios
within one run hardly.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import Ours, Reference, Timing, Vllm, one_thread
from benchmarks.workload import SIZES, Job, jobs, write_folder


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as place, one_thread():
        folder = write_folder(Path(place) / "checkpoint", options.size)
        report: dict[str, Any] = {
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "dtype": options.dtype,
            "pictures": options.pictures,
        }
        if options.equality:
            report["equality"] = equality(folder, options.equality)
            print(equality_line(report["equality"]), flush=True)
        report["lengths"] = measure(folder, options)
    for lengths, rows in report["lengths"].items():
        print(f"\n{lengths}: {options.pictures} pictures, {options.dtype}, {options.repeat} rounds")
        print(table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--lengths", nargs="+", choices=["fixed", "mixed"], default=None)
    parser.add_argument("--batch-rows", type=int, default=64, help="of ours; vLLM has 64")
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 64], help="of transformers")
    parser.add_argument("--vllm", help="a Python in whose environment vllm is installed")
    parser.add_argument("--equality", type=int, default=16, help="pictures; 0 leaves it out")
    parser.add_argument("--json", help="where to write the figures")
    options = parser.parse_args()
    options.lengths = options.lengths or ["fixed", "mixed"]
    return options


def equality(folder: Path, pictures: int) -> dict[str, Any]:
    """Counts the pictures that get the same tokens from ours and the reference, in float32."""
    work = jobs(1, pictures, mixed=False)
    got = Ours(folder, "float32").run(work).tokens
    want = Reference(folder, torch.float32, 16).run(work).tokens
    same = sum(a == b for a, b in zip(got, want, strict=True))
    return {
        "pictures": pictures,
        "same": same,
        "tokens_each": work[0].new,
        "different_tokens": len({token for row in want for token in row}),
    }


def equality_line(found: dict[str, Any]) -> str:
    return (
        f"float32: {found['same']} of {found['pictures']} answers of {found['tokens_each']} tokens "
        f"are the reference's ({found['different_tokens']} different tokens among them)"
    )


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns, by kind of lengths and by engine, the seconds of each round and the medians."""
    engines: dict[str, Callable[[Sequence[Job]], Timing]] = {}
    engines["ours"] = Ours(folder, options.dtype, batch_rows=options.batch_rows).run
    for rows in options.rows:
        name = f"transformers, {rows} rows"
        engines[name] = Reference(folder, getattr(torch, options.dtype), rows).run
    other = None
    if options.vllm:
        other = Vllm(options.vllm, folder, options.dtype, folder.parent)
        engines[f"vllm {other.version}"] = other.run
    warm = jobs(2, min(8, options.pictures), mixed=False, fixed=4)
    for run in engines.values():
        run(warm)
    result = {}
    for kind in options.lengths:
        taken: dict[str, list[Timing]] = {name: [] for name in engines}
        for round_ in range(options.repeat):
            work = jobs(100 + round_, options.pictures, kind == "mixed")
            for name, run in engines.items():
                timing = run(work)
                _check(name, work, timing)
                taken[name].append(timing)
                print(f"{kind} {round_ + 1} {name}: {timing.seconds:.2f} CPU-s", flush=True)
        result[kind] = {name: _summary(timings, taken["ours"]) for name, timings in taken.items()}
    if other:
        other.close()
    return result


def _check(name: str, work: Sequence[Job], timing: Timing) -> None:
    wrong = sum(len(t) != job.new for t, job in zip(timing.tokens, work, strict=True))
    if wrong:
        raise RuntimeError(f"{name} gave {wrong} answers of another length than was asked for")


def _summary(timings: Sequence[Timing], ours: Sequence[Timing]) -> dict[str, Any]:
    ratios = [t.seconds / o.seconds for t, o in zip(timings, ours, strict=True)]
    equal = [
        sum(a == b for a, b in zip(t.tokens, o.tokens, strict=True))
        for t, o in zip(timings, ours, strict=True)
    ]
    return {
        "seconds": [t.seconds for t in timings],
        "median": statistics.median(t.seconds for t in timings),
        "parts": {k: statistics.median(t.parts[k] for t in timings) for k in timings[0].parts},
        "times_ours": statistics.median(ratios),
        "answers_as_ours": statistics.median(equal),
    }


def table(rows: dict[str, Any]) -> str:
    """Returns the medians as text: CPU-seconds, ratio to ours, and the phases."""
    lines = [f"{'engine':<24}{'CPU-s':>8}{'x ours':>8}  parts"]
    for name, row in rows.items():
        parts = ", ".join(f"{key} {value:.2f}" for key, value in row["parts"].items())
        lines.append(f"{name:<24}{row['median']:>8.2f}{row['times_ours']:>8.2f}  {parts}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
