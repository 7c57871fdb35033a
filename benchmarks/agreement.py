"""Measures how often reduced precision changes a greedy answer.

Usage: `python -m benchmarks.agreement FOLDER`.

Answers the same prompts about drawn pictures in float32 and bfloat16, with our engine and with the
reference; without a folder, with a random checkpoint. The baseline is the reference in float32.
Prints the share of answers that equal the baseline's, and the share of tokens before the first
difference.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
from mediamill.model.engine import Engine, Request
from mediamill.model.families.qwen2_vl.config import load_config
from mediamill.model.inputs import VisualInput
from mediamill.model.layers.optimize import optimize_for_inference
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.patches import patchify_image
from mediamill.model.sampling import Sampling
from mediamill.model.weights import load_model

Answers = list[list[int]]
CELL, PATCH = 28, 14


def drawn(folder: Path, count: int, new: int) -> list[Request]:
    """Returns prompts of random words around one random picture of up to 6 x 6 tokens."""
    config, rng = load_config(folder), np.random.default_rng(0)
    special = min(config.image_token_id, config.video_token_id, config.vision_start_token_id)
    words = min(special, config.text.vocab_size)
    found = []
    for number in range(count):
        rows, columns = (int(n) for n in rng.integers(2, 7, 2))
        coarse = rng.integers(0, 200, (3, rows, columns), dtype=np.uint8)
        grain = rng.integers(0, 56, (3, rows * CELL, columns * CELL), dtype=np.uint8)
        pixels = torch.from_numpy(coarse.repeat(CELL, 1).repeat(CELL, 2) + grain)
        grid = (1, rows * CELL // PATCH, columns * CELL // PATCH)
        visual = VisualInput("image", patchify_image(pixels), grid)
        text = [int(i) for i in rng.integers(0, words, int(rng.integers(4, 20)))]
        ids = [
            *text[:2],
            config.vision_start_token_id,
            *[config.image_token_id] * visual.tokens,
            config.vision_end_token_id,
            *text[2:],
        ]
        sampling = Sampling(max_new_tokens=new, temperature=0.0)
        found.append(Request(str(number), ids, (visual,), sampling))
    return found


def ours(folder: Path, requests: list[Request], dtype: torch.dtype, device: str) -> Answers:
    model = optimize_for_inference(load_model(folder, dtype, device))
    rules = {kind: ImageRules.from_checkpoint(folder, kind) for kind in ("image", "video")}
    engine = Engine(model, rules, GenerationDefaults.load(folder))  # type: ignore[arg-type]
    done = {one.id: one.output_ids for one in engine.generate(requests)}
    return [done[request.id] for request in requests]


def theirs(folder: Path, requests: list[Request], dtype: torch.dtype, device: str) -> Answers:
    from tests import oracle

    model = oracle.load_model(folder).to(device, dtype)
    rules, found = ImageRules.from_checkpoint(folder, "image"), []
    image = load_config(folder).image_token_id
    for request in requests:
        (visual,) = request.visuals
        ids = torch.tensor([list(request.input_ids)], device=device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == image).long(),
            pixel_values=rules.normalize(visual.patches, "image").to(device, dtype),
            image_grid_thw=torch.tensor([visual.grid_thw], device=device),
            max_new_tokens=request.sampling.max_new_tokens,
            do_sample=False,
        )
        found.append(out[0, ids.shape[1] :].tolist())
    return found


def agreement(found: Answers, wanted: Answers) -> tuple[float, float]:
    """Returns the share of equal answers, and of tokens before the first difference."""
    before = total = 0
    for one, other in zip(found, wanted, strict=True):
        longest = max(len(one), len(other))
        pairs = enumerate(zip_longest(one, other))
        before += next((i for i, (a, b) in pairs if a != b), longest)
        total += longest
    return sum(map(list.__eq__, found, wanted)) / len(wanted), before / total


def measured(folder: Path, count: int, new: int, device: str) -> dict[str, tuple[float, float]]:
    requests = drawn(folder, count, new)
    wanted = theirs(folder, requests, torch.float32, device)
    ways: dict[str, Callable[[], Answers]] = {
        "ours, float32": lambda: ours(folder, requests, torch.float32, device),
        "ours, bfloat16": lambda: ours(folder, requests, torch.bfloat16, device),
        "reference, bfloat16": lambda: theirs(folder, requests, torch.bfloat16, device),
    }
    return {name: agreement(answers(), wanted) for name, answers in ways.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="a checkpoint; none: a random one")
    parser.add_argument("--count", type=int, default=32, help="pictures")
    parser.add_argument("--new", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder
        if folder is None:
            from benchmarks.workload import write_folder

            folder = write_folder(Path(temporary), "small")
        found = measured(folder, options.count, options.new, options.device)
    print(f"{'against the reference in float32':34}{'answers':>9}{'tokens':>9}")
    for name, (answers, tokens) in found.items():
        print(f"{name:34}{100 * answers:8.1f}%{100 * tokens:8.1f}%")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
