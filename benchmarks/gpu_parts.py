"""Measures the parts of the engine on one device, against the limits of the device.

Each function returns rows of measurements.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_setup import Clock
from mediamill.model.engine_core.cuda_graphs import DecodeGraphs, DecodeInputs
from mediamill.model.engine_core.paged_attention import PagedKernel, choose_kernel, paged_decode
from mediamill.model.engine_core.paged_cache import PagedCache, PagedDecode
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.layers import flash
from mediamill.model.layers.attention import AttentionName, PackedCausalAttention, check_attention
from mediamill.model.media.image_rules import ImageRules
from mediamill.pipeline.forecast import roofline

Row = dict[str, Any]
RULES: dict[VisualKind, ImageRules] = {"image": ImageRules(), "video": ImageRules()}
PAGE = 16


@dataclass(frozen=True)
class Sizes:
    """The sizes that are measured.

    pictures: visual tokens and the grid of each. batches: sequences of decode steps. context:
    tokens of each sequence. prefill: prompts of one call.
    """

    pictures: tuple[tuple[int, tuple[int, int, int]], ...] = (
        (256, (1, 32, 32)),
        (999, (1, 54, 74)),
        (1280, (1, 64, 80)),
        (2691, (1, 78, 138)),
    )
    packed_patches: int = 16384
    batches: tuple[int, ...] = (64, 128, 256, 512)
    context: int = 1077
    prefill: int = 8
    matrix: int = 8192
    copy_bytes: int = 1 << 30


MINIATURE = Sizes(
    pictures=((4, (1, 4, 4)), (12, (1, 6, 8))),
    packed_patches=128,
    batches=(2, 5),
    context=40,
    prefill=2,
    matrix=128,
    copy_bytes=1 << 20,
)


def ceilings(clock: Clock, dtype: torch.dtype, sizes: Sizes) -> tuple[list[Row], roofline.Ceilings]:
    """Measures products of large matrices, and copies within the device and to it."""
    device, side = clock.device, sizes.matrix
    rows: list[Row] = []
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = clock.seconds(lambda: a @ b)
    flops = 2 * side**3 / seconds
    rows.append({"what": f"product {side}^3", "ms": seconds * 1e3, "TFLOP/s": flops / 1e12})
    source = torch.empty(sizes.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = clock.seconds(lambda: target.copy_(source))
    # A copy reads and writes.
    moved = 2 * sizes.copy_bytes / seconds
    rows.append({"what": "copy on the device", "ms": seconds * 1e3, "GB/s": moved / 1e9})
    host = torch.empty(sizes.copy_bytes // 4, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = source[: len(host)]
    seconds = clock.seconds(lambda: there.copy_(host, non_blocking=True))
    rows.append(
        {"what": "copy to the device", "ms": seconds * 1e3, "GB/s": len(host) / seconds / 1e9}
    )
    return rows, roofline.Ceilings(flops, moved)


def products(model: Qwen2VL, clock: Clock, top: roofline.Ceilings, sizes: Sizes) -> list[Row]:
    """Measures products at the network's own shapes."""
    text, vision = model.config.text, model.config.vision
    inner = int(vision.embed_dim * vision.mlp_ratio)
    rows: list[Row] = []
    for name, m, k, n in (
        ("vision qkv", sizes.packed_patches, vision.embed_dim, 3 * vision.embed_dim),
        ("vision fc1", sizes.packed_patches, vision.embed_dim, inner),
        ("prefill gate and up", 8 * sizes.context, text.hidden_size, 2 * text.intermediate_size),
        ("prefill down", 8 * sizes.context, text.intermediate_size, text.hidden_size),
        ("decode head", sizes.batches[-1], text.hidden_size, text.vocab_size),
    ):
        a = torch.randn(m, k, device=model.device, dtype=model.dtype)
        b = torch.randn(n, k, device=model.device, dtype=model.dtype)
        seconds = clock.seconds(lambda a=a, b=b: a @ b.t())  # type: ignore[misc]
        flops = 2 * m * k * n / seconds
        rows.append(
            {
                "what": f"{name} {m}x{k}x{n}",
                "ms": seconds * 1e3,
                "TFLOP/s": flops / 1e12,
                "of the ceiling": flops / top.flops,
            }
        )
    return rows


def attentions(model: Qwen2VL) -> list[AttentionName]:
    found: list[AttentionName] = ["sdpa"]
    if flash.missing_requirement(model.device, model.dtype) is None:
        found.insert(0, check_attention("flash", model.device, model.dtype))
    return found


@torch.inference_mode()
def vision(model: Qwen2VL, clock: Clock, top: roofline.Ceilings, sizes: Sizes) -> list[Row]:
    """Measures the vision tower on as many equal pictures as one call takes."""
    rows: list[Row] = []
    for tokens, grid in sizes.pictures:
        patches = grid[1] * grid[2]
        count = max(1, sizes.packed_patches // patches)
        values = RULES["image"].patch_values("image")
        media = [
            VisualInput(
                "image",
                torch.randint(0, 256, (patches, values), dtype=torch.uint8, device=model.device),
                grid,
            )
            for _ in range(count)
        ]
        flops = roofline.vision_flops(model.config, [grid] * count)
        for name in attentions(model):
            seconds = clock.seconds(
                lambda name=name, media=media: model.visual.encode(media, RULES, name)  # type: ignore[misc]
            )
            rows.append(
                {
                    "what": f"vision {tokens} tokens x {count} ({name})",
                    "ms": seconds * 1e3,
                    "ms per picture": seconds * 1e3 / count,
                    "TFLOP/s": flops / seconds / 1e12,
                    "of the ceiling": flops / seconds / top.flops,
                }
            )
    return rows


@torch.inference_mode()
def prefill(model: Qwen2VL, clock: Clock, top: roofline.Ceilings, sizes: Sizes) -> list[Row]:
    """Measures the decoder on packed prompts, with the head for their last tokens."""
    rows: list[Row] = []
    device, text = model.device, model.config.text
    for tokens, _ in sizes.pictures:
        lengths = [tokens + 30] * sizes.prefill
        embeddings = torch.randn(sum(lengths), text.hidden_size, device=device, dtype=model.dtype)
        positions = torch.cat([torch.arange(n, device=device) for n in lengths]).expand(3, -1)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        flops = roofline.prefill_flops(text, lengths)
        for name in attentions(model):

            def work(
                name: AttentionName = name,
                lengths: list[int] = lengths,
                positions: torch.Tensor = positions,
                embeddings: torch.Tensor = embeddings,
                last: torch.Tensor = last,
            ) -> torch.Tensor:
                backend = PackedCausalAttention(lengths, name)
                hidden = model.hidden_states(embeddings, positions, backend)
                return model.logits(hidden[last])

            seconds = clock.seconds(work)
            rows.append(
                {
                    "what": f"prefill {lengths[0]} tokens x {len(lengths)} ({name})",
                    "ms": seconds * 1e3,
                    "ms per picture": seconds * 1e3 / len(lengths),
                    "TFLOP/s": flops / seconds / 1e12,
                    "of the ceiling": flops / seconds / top.flops,
                }
            )
    return rows


def kernels(model: Qwen2VL, page: int) -> list[PagedKernel]:
    """Returns all kernels that can run, the engine's choice first."""
    best = choose_kernel(model.device, model.dtype, model.config.text.head_dim, page)
    found: list[PagedKernel] = [best]
    if best == "varlen":
        found.append("triton")
    return [*found, "gather"] if best != "gather" else found


class Batch:
    """A full batch in a paged cache, all sequences of `context` tokens, and its decode step."""

    def __init__(
        self, model: Qwen2VL, rows: int, context: int, kernel: PagedKernel, page: int = PAGE
    ) -> None:
        device, pages = model.device, -(-context // page)
        text = model.config.text
        self.cache = PagedCache(text, rows * pages * page, page, model.dtype, device, kernel)
        self.table = torch.randperm(rows * pages, device=device).to(torch.int32).view(rows, pages)
        self.filled = torch.full((rows,), context, dtype=torch.int32, device=device)
        last = self.table[:, (context - 1) // page].long()
        self.slots = last * page + (context - 1) % page
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions = torch.full((rows,), context - 1, device=device)
        self.model = model

    @property
    def inputs(self) -> DecodeInputs:
        return DecodeInputs(self.tokens, self.positions, self.table, self.filled, self.slots)

    def step(self, inputs: DecodeInputs) -> torch.Tensor:
        model, attend = self.model, PagedDecode(self.cache, *inputs[2:])
        embeddings = model.model.embed_tokens(inputs.tokens)
        return model.logits(model.hidden_states(embeddings, inputs.positions.expand(3, -1), attend))

    def graphs(self) -> DecodeGraphs | None:
        """The step as a graph; None where graphs cannot run."""
        if self.model.device.type != "cuda":
            return None
        return DecodeGraphs(
            self.step,
            self.model.device,
            max_batch_size=len(self.tokens),
            max_pages=self.table.shape[1],
            scratch_page=self.cache.scratch_page,
            page_size=self.cache.page_size,
        )


@torch.inference_mode()
def decode(model: Qwen2VL, clock: Clock, top: roofline.Ceilings, sizes: Sizes) -> list[Row]:
    """Measures decode steps, eager and as graphs, against the time to read weights and cache."""
    rows: list[Row] = []
    for count in sizes.batches:
        best = 1e3 * roofline.decode_seconds(model.config.text, count, sizes.context, top)
        for kernel in kernels(model, PAGE):
            batch = Batch(model, count, sizes.context, kernel)
            ways: list[tuple[str, Callable[..., object] | None]] = [
                ("eager", batch.step),
                ("graph", batch.graphs()),
            ]
            for way, step in ways:
                if step is None:
                    continue
                ms = 1e3 * clock.seconds(lambda step=step, batch=batch: step(batch.inputs))  # type: ignore[misc]
                row = {
                    "what": f"decode {count} rows x {sizes.context} ({kernel}, {way})",
                    "ms": ms,
                    "least ms": best,
                    "of the ceiling": best / ms,
                    "tokens/s": count / ms * 1e3,
                }
                if isinstance(step, DecodeGraphs) and step.failure is not None:
                    row["failure"] = step.failure
                rows.append(row)
            del batch, ways, step
    return rows


@torch.inference_mode()
def paged_kernels(model: Qwen2VL, clock: Clock, top: roofline.Ceilings, sizes: Sizes) -> list[Row]:
    """Measures the attention of one layer, for two block sizes."""
    rows: list[Row] = []
    text = model.config.text
    for page in (PAGE, 256):
        for count in sizes.batches:
            batch = Batch(model, count, sizes.context, "gather", page)
            q = torch.randn(
                count,
                text.num_attention_heads,
                text.head_dim,
                device=model.device,
                dtype=model.dtype,
            )
            keys, values = batch.cache.keys[0], batch.cache.values[0]
            read = (
                count
                * sizes.context
                * roofline.cache_bytes(text, keys.element_size())
                / text.num_hidden_layers
            )
            for kernel in kernels(model, page):
                seconds = clock.seconds(
                    lambda q=q, keys=keys, values=values, batch=batch, kernel=kernel: paged_decode(  # type: ignore[misc]
                        q, keys, values, batch.table, batch.filled, None, kernel
                    )
                )
                rows.append(
                    {
                        "what": f"attention {count} rows, pages of {page} ({kernel})",
                        "ms": seconds * 1e3,
                        "GB/s": read / seconds / 1e9,
                        "of the ceiling": read / seconds / top.bytes,
                    }
                )
            del batch, keys, values
    return rows
