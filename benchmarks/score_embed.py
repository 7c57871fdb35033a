"""Compares scoring and embedding with captioning: `python -m benchmarks.score_embed`.

One engine on one CPU thread processes the same fresh pictures in each mode in turn (A B C A B C).
Prints medians of CPU-seconds. Absolute figures drift with the machine's load, ratios within one run
hardly.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.contestants import PATCH, one_thread
from benchmarks.workload import SIZES, Job, jobs, write_folder
from mediamill.model.engine import Engine, Request
from mediamill.model.inputs import VisualInput
from mediamill.model.media.patches import patchify_image
from mediamill.model.sampling import Sampling

TOKENS = 24  # of an answer and of a candidate
POOLS = ("last", "mean", "visual_tokens", "vision_tower")
Make = Callable[[str, Job, VisualInput], Request]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.score_embed", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, one_thread():
        folder = write_folder(Path(place) / "checkpoint", options.size)
        engine = Engine.load(folder, device="cpu", dtype=options.dtype, batch_rows=64)
        found = measure(engine, options.pictures, options.repeat)
    caption = found["caption"]
    for name, seconds in found.items():
        rate = options.pictures / seconds
        print(f"{name:<24}{rate:>8.1f} rows/s{seconds / caption:>8.2f} of a caption's time")


def measure(engine: Engine, pictures: int, repeat: int) -> dict[str, float]:
    """Returns the median CPU-seconds of each mode. Each round has new pictures."""
    ways: dict[str, Make] = {"caption": _caption}
    ways |= {f"score {count}": _score(count) for count in (1, 5, 20)}
    ways |= {f"embed {pool}": _embed(pool) for pool in POOLS}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeat):
        for way, (name, make) in enumerate(ways.items()):
            # One engine for each, since an engine caches prompts.
            work = jobs(len(ways) * number + way, pictures, mixed=False)
            seconds[name].append(_run(engine, work, make))
    return {name: statistics.median(each) for name, each in seconds.items()}


def _run(engine: Engine, work: Sequence[Job], make: Make) -> float:
    began = time.process_time()
    requests = []
    for number, job in enumerate(work):
        pixels = torch.from_numpy(job.picture).permute(2, 0, 1)
        grid = (1, pixels.shape[1] // PATCH, pixels.shape[2] // PATCH)
        visual = VisualInput("image", patchify_image(pixels), grid)
        requests.append(make(str(number), job, visual))
    for done in engine.generate(requests):
        if done.error is not None:
            raise RuntimeError(done.error)
    return time.process_time() - began


def _caption(name: str, job: Job, visual: VisualInput) -> Request:
    sampling = Sampling(max_new_tokens=TOKENS, eos_token_ids=())
    return Request(name, job.ids, (visual,), sampling)


def _score(count: int) -> Make:
    rng = np.random.default_rng(5)
    texts = rng.integers(0, 500, (count, TOKENS)).tolist()

    def make(name: str, job: Job, visual: VisualInput) -> Request:
        return Request(name, job.ids, (visual,), mode="score", continuations=texts)

    return make


def _embed(pool: str) -> Make:
    def make(name: str, job: Job, visual: VisualInput) -> Request:
        return Request(name, job.ids, (visual,), mode="embed", pool=pool)  # type: ignore[arg-type]

    return make


if __name__ == "__main__":
    main()
