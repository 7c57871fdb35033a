"""Measures the embedded checkpoint on fresh scenes: `python -m mediamill.model.tiny.gate`.

Each scene becomes a real file, goes through the processor and the engine like a user's, and its
text must equal the truth to the letter. Exits with 1 when a kind is below its bar.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.processor import Processor
from mediamill.model.sampling import Sampling
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.model.tiny.encode import EXTENSIONS, clip_file, picture_file
from mediamill.model.tiny.questions import draw_question
from mediamill.model.tiny.scenes import KINDS

# The share of exact answers that each kind must reach.
BARS = {"one": 0.99, "two": 0.98, "three": 0.95, "word": 0.95, "clip": 0.99, "question": 0.97}
# Far from the seeds of the training.
SEED = 900_000


@dataclass(frozen=True)
class GateResult:
    """right of total answers were exact; wrong: the first few (truth, text) that were not."""

    right: int
    total: int
    wrong: tuple[tuple[str, str], ...]


def measure(folder: Path, kind: str, count: int, seed: int = SEED) -> GateResult:
    """Ask about `count` fresh scenes of `kind`; "question": questions about all kinds in turn."""
    processor, engine = Processor.load(folder), Engine.load(folder, device="cpu", batch_rows=64)
    truths: dict[str, str] = {}
    completions = engine.generate(_requests(processor, kind, count, seed, truths))
    texts = {c.id: processor.decode(c.output_ids) for c in completions}
    wrong = [(truth, texts[name]) for name, truth in truths.items() if texts[name] != truth]
    return GateResult(count - len(wrong), count, tuple(wrong[:5]))


def _requests(
    processor: Processor, kind: str, count: int, seed: int, truths: dict[str, str]
) -> Iterator[Request]:
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        drawn = KINDS[number % len(KINDS)] if kind == "question" else kind
        if drawn == "clip":
            scene, data = clip_file(rng)
        else:
            picture = next(k for k in KINDS if k == drawn)
            scene, data = picture_file(rng, picture, EXTENSIONS[number % len(EXTENSIONS)])
        asked = draw_question(rng, scene) if kind == "question" else (CAPTION_PROMPT, scene.caption)
        visual, _ = processor.prepare_media(data)
        ids = processor.build_prompt(processor.user_message(asked[0], [visual.kind]), [visual])
        truths[str(number)] = asked[1]
        yield Request(str(number), ids, (visual,), Sampling(max_new_tokens=32))


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the embedded checkpoint on fresh scenes.")
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=500, help="scenes of each kind")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--kinds", nargs="+", choices=[*BARS], default=[*BARS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    missed = False
    print(f"{'kind':10}{'exact':>8}{'of':>6}{'rate':>8}{'bar':>7}")
    for kind in options.kinds:
        score = measure(options.model, kind, options.count, options.seed)
        rate = score.right / score.total
        missed |= rate < BARS[kind]
        verdict = "" if rate >= BARS[kind] else "  below"
        row = f"{kind:10}{score.right:8}{score.total:6}{rate:8.1%}{BARS[kind]:7.0%}{verdict}"
        print(row, flush=True)
        for truth, text in score.wrong:
            print(f"    expected {truth!r}, got {text!r}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
