"""Measures each part alone on this machine: `python -m benchmarks`, one line for each part."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.inputs import VisualInput
from mediamill.model.processor import Processor
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.model.tiny.encode import clip_bytes, picture_bytes
from mediamill.model.tiny.scenes import draw_clip, draw_picture

PICTURES, CLIPS, ROUNDS = 64, 16, 3


def main() -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_picture(rng, "two", 1024, 768) for _ in range(PICTURES)]
    clips = [clip_bytes(draw_clip(rng, 360, 240, 36).frames) for _ in range(CLIPS)]
    small = Processor.load(CHECKPOINT)
    large = Processor.load(CHECKPOINT, image_min_pixels=3136, image_max_pixels=1024 * 1024)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for extension in ("jpg", "png", "webp"):
        files = [picture_bytes(scene.frames[0], extension) for scene in scenes]
        for processor, seen in ((large, "whole"), (small, "tiny")):
            work = partial(prepare, processor, files)
            report(f"prepare {extension}, 0.8 MP, seen {seen}", PICTURES, work)
    report("prepare mp4, 36 frames of 360 x 240", CLIPS, partial(prepare, small, clips))
    for visuals, name in ((prepare(small, files), "pictures"), (prepare(small, clips), "clips")):
        requests = ask(small, visuals)
        for rows in (1, 16):
            engine = Engine.load(CHECKPOINT, device="cpu", batch_rows=rows)
            work = partial(answer, engine, requests)
            report(f"caption {name}, tiny model, batches of {rows}", len(requests), work)


def answer(engine: Engine, requests: Sequence[Request]) -> None:
    assert all(done.error is None for done in engine.generate(requests))


def prepare(processor: Processor, files: Sequence[bytes]) -> list[VisualInput]:
    return [processor.prepare_media(data)[0] for data in files]


def ask(processor: Processor, visuals: Sequence[VisualInput]) -> list[Request]:
    prompts = (processor.user_message(CAPTION_PROMPT, [visual.kind]) for visual in visuals)
    return [
        Request(str(number), processor.build_prompt(prompt, [visual]), (visual,))
        for number, (prompt, visual) in enumerate(zip(prompts, visuals, strict=True))
    ]


def report(name: str, items: int, work: Callable[[], object]) -> None:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    print(f"{name:<42}{items / best:>9.1f} /s{1000 * best / items:>10.2f} ms each", flush=True)


if __name__ == "__main__":
    main()
