"""Measures whole captioning jobs on one device, from JPEGs to token ids.

Runs the engine and transformers on a network with random weights. All pictures are drawn and
different; separate processes decode and prepare them while the device works.
"""

import importlib
import io
import multiprocessing
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu_parts import PAGE, RULES, Row, attentions
from benchmarks.gpu_setup import SHAPES
from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
from mediamill.model.engine import Engine, Request
from mediamill.model.engine_core.cuda_graphs import DecodeGraphs
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.inputs import VisualInput
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.prepared import prepare_picture
from mediamill.model.sampling import Sampling
from mediamill.pipeline.forecast import roofline


@dataclass(frozen=True)
class Job:
    """`requests` requests, each with `pictures` pictures of `size` (width, height).

    new: tokens of each answer. prompt: text tokens of each prompt.
    """

    size: tuple[int, int]
    requests: int
    new: int
    pictures: int = 1
    prompt: int = 30

    def __str__(self) -> str:
        width, height = self.size
        many = f"{self.pictures} x " if self.pictures > 1 else ""
        return f"{many}{width}x{height}, {self.new} new"


def drawn_jpeg(seed: int, size: tuple[int, int]) -> bytes:
    """Returns a picture of smooth noise with grain."""
    rng = np.random.default_rng(seed)
    width, height = size
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    found = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(found, "JPEG")
    return found.getvalue()


def prepared(data: bytes) -> tuple[Any, tuple[int, int, int]]:
    """Returns the patches as an array, and their grid."""
    torch.set_num_threads(1)
    visual, _ = prepare_picture(data, ImageRules(), MediaLimits())
    return visual.patches.numpy(), visual.grid_thw


class Preparers:
    """Processes that draw and prepare pictures."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.workers = workers
        self._pool = ProcessPoolExecutor(workers, mp_context=context)

    def draw(self, job: Job, seed: int) -> list[bytes]:
        count = job.requests * job.pictures
        seeds = range(seed, seed + count)
        return list(self._pool.map(drawn_jpeg, seeds, [job.size] * count, chunksize=4))

    def prepare(self, jpegs: Iterable[bytes]) -> Iterator[VisualInput]:
        """Yields the requests in order, and prepares some ahead."""
        running: deque[Future[tuple[Any, tuple[int, int, int]]]] = deque()
        waiting = iter(jpegs)
        while True:
            while len(running) < 4 * self.workers and (data := next(waiting, None)) is not None:
                running.append(self._pool.submit(prepared, data))
            if not running:
                return
            patches, grid = running.popleft().result()
            yield VisualInput("image", torch.from_numpy(patches), grid)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def request(model: Qwen2VL, number: int, visuals: tuple[VisualInput, ...], job: Job) -> Request:
    config = model.config
    words = [5 + i for i in range(max(2, job.prompt - 2 * len(visuals)))]
    half = len(words) // 2
    ids = words[:half]
    for visual in visuals:
        pads = [config.image_token_id] * visual.tokens
        ids += [config.vision_start_token_id, *pads, config.vision_end_token_id]
    ids += words[half:]
    sampling = Sampling(max_new_tokens=job.new, eos_token_ids=())
    return Request(str(number), ids, visuals, sampling)


def ours(
    model: Qwen2VL, job: Job, preparers: Preparers, rows: int, top: roofline.Ceilings, seed: int
) -> Row:
    """Measures the engine on one job, without the first requests, which warm it up."""
    engine = Engine(model, RULES, GenerationDefaults(()), rows, attentions(model)[0])
    jpegs = preparers.draw(job, seed)

    def requests(data: list[bytes], first: int) -> Iterator[Request]:
        visuals = preparers.prepare(data)
        for number in range(len(data) // job.pictures):
            media = tuple(next(visuals) for _ in range(job.pictures))
            grids[:] = [one.grid_thw for one in media]
            yield request(model, first + number, media, job)

    grids: list[tuple[int, int, int]] = []
    warm = Job(job.size, min(rows, job.requests, 64), min(job.new, 16), job.pictures)
    errors = [
        one.error
        for one in engine.generate(requests(preparers.draw(warm, seed + 10**6), 10**6))
        if one.error
    ]
    step = engine.model_runner.decode_step
    if isinstance(step, DecodeGraphs):
        # A long job captures each size once, so the capture is not measured.
        merge = model.config.vision.spatial_merge_size**2
        tokens = job.prompt + job.new + sum(t * h * w // merge for t, h, w in grids)
        with torch.inference_mode():
            step.capture_all(-(-tokens // PAGE))
    began = time.perf_counter()
    done = list(engine.generate(requests(jpegs, 0)))
    seconds = time.perf_counter() - began
    errors += [one.error for one in done if one.error]
    if errors:
        raise RuntimeError(errors[0])
    least = roofline.picture_seconds(model.config, grids, job.prompt, job.new, rows, top)
    row: Row = {
        "what": f"{job} (ours)",
        "requests/s": len(done) / seconds,
        "pictures/s": len(done) * job.pictures / seconds,
        "tokens/s": sum(len(one.output_ids) for one in done) / seconds,
        "of the ceiling": len(done) * least / seconds,
    }
    stats = getattr(engine, "stats", None)
    if stats is not None:
        row["stats"] = str(stats())
    return row


def reference(model: Qwen2VL, shape: str, job: Job, preparers: Preparers, rows: int) -> Row:
    """Measures transformers' generate() on prepared pictures, or returns why it does not import.

    Pictures of one size need no padding, so this is its best case.
    """
    # The tests' import works around an incompatible torchvision; this needs torchvision.
    with suppress(ImportError):
        importlib.import_module("tests.oracle")
    try:
        from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    except (ImportError, RuntimeError) as error:
        return {"what": f"transformers does not import: {error}"[:300]}
    config = Qwen2VLConfig(**SHAPES[shape])
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)
    try:
        with torch.device(model.device):
            theirs = Qwen2VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    visuals = list(preparers.prepare(preparers.draw(job, 77)))
    groups = [visuals[i : i + rows] for i in range(0, len(visuals), rows)]

    def answer(group: list[VisualInput], new: int) -> int:
        ids = torch.tensor(
            [list(request(model, 0, (one,), job).input_ids) for one in group], device=model.device
        )
        pixels = torch.cat(
            [RULES["image"].normalize(one.patches.to(model.device), "image") for one in group]
        )
        out = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == model.config.image_token_id).long(),
            pixel_values=pixels.to(model.dtype),
            image_grid_thw=torch.tensor([one.grid_thw for one in group], device=model.device),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
        )
        return int(out.shape[1]) - ids.shape[1]

    answer(groups[0], 2)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    tokens = sum(len(group) * answer(group, job.new) for group in groups)
    seconds = time.perf_counter() - began
    return {
        "what": f"{job} (transformers, {rows} at once, prepared before)",
        "requests/s": len(visuals) / seconds,
        "pictures/s": len(visuals) / seconds,
        "tokens/s": tokens / seconds,
    }
