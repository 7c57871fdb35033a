"""The quality gate of the embedded checkpoint: `python -m mediamill.model.tiny.gate`.

It draws new scenes, encodes each as a media file, runs it through the processor and the engine, and
compares the text with the caption, which has to be equal. It exits with 1 if a kind of scene is
below its required accuracy.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.processor import Processor
from mediamill.model.sampling import Sampling
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.model.tiny.encode import EXTENSIONS, clip_file, picture_file
from mediamill.model.tiny.questions import draw_question
from mediamill.model.tiny.scenes import KINDS, Kind

# Required share of exact answers of each kind.
REQUIRED_ACCURACY = {
    "one": 0.99,
    "two": 0.98,
    "three": 0.95,
    "word": 0.95,
    "clip": 0.99,
    "question": 0.97,
}
# Not a seed of the training.
SEED = 900_000


@dataclass(frozen=True)
class GateResult:
    """The result for one kind of scene.

    exact, total: number of exact answers, and of all answers.
    mistakes: (expected, text) of the first few answers that were not exact.
    """

    exact: int
    total: int
    mistakes: tuple[tuple[str, str], ...]


def measure(folder: Path, kind: str, count: int, seed: int = SEED) -> GateResult:
    """Asks about `count` new scenes of a kind; "question": questions about all kinds in turn."""
    processor, engine = Processor.load(folder), Engine.load(folder, device="cpu", batch_rows=64)
    expected: dict[str, str] = {}  # by request id
    completions = engine.generate(_requests(processor, kind, count, seed, expected))
    texts = {completion.id: processor.decode(completion.output_ids) for completion in completions}
    mistakes = [(text, texts[name]) for name, text in expected.items() if texts[name] != text]
    return GateResult(count - len(mistakes), count, tuple(mistakes[:5]))


def _requests(
    processor: Processor, kind: str, count: int, seed: int, expected: dict[str, str]
) -> Iterator[Request]:
    """Yields a request for each scene, and puts the right answer into `expected`."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        scene_kind = KINDS[number % len(KINDS)] if kind == "question" else cast(Kind, kind)
        if scene_kind == "clip":
            scene, data = clip_file(rng)
        else:
            scene, data = picture_file(rng, scene_kind, EXTENSIONS[number % len(EXTENSIONS)])
        prompt, answer = CAPTION_PROMPT, scene.caption
        if kind == "question":
            prompt, answer = draw_question(rng, scene)
        visual, _ = processor.prepare_media(data)
        ids = processor.build_prompt(processor.user_message(prompt, [visual.kind]), [visual])
        expected[str(number)] = answer
        yield Request(str(number), ids, (visual,), Sampling(max_new_tokens=32))


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(description="Measure the embedded checkpoint on new scenes.")
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=500, help="scenes of each kind")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--kinds", nargs="+", choices=[*REQUIRED_ACCURACY], default=[*REQUIRED_ACCURACY]
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    is_below = False
    print(f"{'kind':10}{'exact':>8}{'of':>6}{'rate':>8}{'bar':>7}")
    for kind in options.kinds:
        result = measure(options.model, kind, options.count, options.seed)
        rate = result.exact / result.total
        required = REQUIRED_ACCURACY[kind]
        is_below |= rate < required
        verdict = "" if rate >= required else "  below"
        row = f"{kind:10}{result.exact:8}{result.total:6}{rate:8.1%}{required:7.0%}{verdict}"
        print(row, flush=True)
        for expected, text in result.mistakes:
            print(f"    expected {expected!r}, got {text!r}")
    return int(is_below)


if __name__ == "__main__":
    sys.exit(main())
