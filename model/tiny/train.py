"""Trains the embedded checkpoint: `python -m mediamill.model.tiny.train --out FOLDER`.

Turns the drawn world into weights. Recipe: Muon for matrices (Keller Jordan 2024), AdamW for the
rest, one cosine over the whole run, and an auxiliary loss that asks each visual token for the
labels of its own cell.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from mediamill.model.families.initialize import initialize_weights
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.layers.attention import PackedCausalAttention
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.tiny import CHECKPOINT
from mediamill.model.tiny.folder import tiny_config, write_folder
from mediamill.model.tiny.samples import TAGS, Batch, SampleMaker, batches

AUXILIARY_WEIGHT = 2.0
POSITIVE_WEIGHT = 3.0
WARMUP = 60
FLOOR = 0.02
MUON_RATE, ADAM_RATE, DECAY, CLIP = 3.5e-3, 2e-3, 0.05, 1.0


@dataclass(frozen=True)
class Plan:
    """What one training does.

    steps, size: batches, and pictures in one. workers: processes that draw; with 0 the training
    process draws itself.
    """

    steps: int = 11_000
    size: int = 48
    seed: int = 0
    dtype: torch.dtype = torch.bfloat16
    workers: int = 1


class Trainee(nn.Module):
    """The network and the head for the auxiliary loss, which is thrown away afterwards."""

    def __init__(self, model: Qwen2VL) -> None:
        super().__init__()
        self.model = model
        self.tagger = nn.Linear(model.config.text.hidden_size, len(TAGS))

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy of the answers, and binary cross entropy of the cells' tags."""
        model = self.model
        tokens = model.visual(batch.patches, batch.grids, "eager")
        images, videos = (None, tokens) if batch.is_clip else (tokens, None)
        rows, length = batch.input_ids.shape
        embeddings = model.embed(batch.input_ids.flatten(), images, videos)
        positions = model.positions(
            batch.input_ids, *(([], batch.grids) if batch.is_clip else (batch.grids, []))
        )
        hidden = model.hidden_states(
            embeddings, positions, PackedCausalAttention([length] * rows, "eager")
        )
        target = batch.labels.roll(-1, dims=1).flatten()
        asked = target != -100
        answer = F.cross_entropy(model.logits(hidden[asked]).float(), target[asked])
        weight = torch.tensor(POSITIVE_WEIGHT)
        tags = F.binary_cross_entropy_with_logits(
            self.tagger(tokens).float(), batch.tags, pos_weight=weight
        )
        return answer, tags


def initialize(model: Qwen2VL, patches: torch.Tensor) -> None:
    """Weights N(0, 1/sqrt(fan_in)), residual outputs shrunk, and the patch projection from real
    patches' PCA.
    """
    config = model.config

    def spread(name: str, parameter: nn.Parameter) -> float:
        embedding = name.endswith("embed_tokens.weight")
        return 0.08 if embedding else float(parameter[0].numel() ** -0.5)

    initialize_weights(model, seed=None, spread=spread)
    residual = ("attn.proj.weight", "mlp.fc2.weight", "o_proj.weight", "down_proj.weight")
    for name, parameter in model.named_parameters():
        if name.endswith(residual):
            depth = (
                config.vision.depth if name.startswith("visual.") else config.text.num_hidden_layers
            )
            parameter.data.div_(math.sqrt(2 * depth))
    centred = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
    best = values.argsort(descending=True)[: config.vision.embed_dim]
    kernel = (vectors[:, best] * values[best].clamp_min(1e-6) ** -0.4).T
    model.visual.patch_embed.proj.weight.data.copy_(
        kernel.reshape(model.visual.patch_embed.proj.weight.shape)
    )


class Optimiser:
    """Muon and AdamW over float32 masters of a bfloat16 network."""

    def __init__(self, module: Trainee, steps: int, dtype: torch.dtype) -> None:
        self.steps, self.dtype = steps, dtype
        self.masters = [p.detach().float().clone() for p in module.parameters()]
        module.to(dtype)
        for part in (module.model.visual, module.model.model):
            part.reset_frequencies(torch.device("cpu"))
        self.parameters = list(module.parameters())
        matrices: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for (name, parameter), master in zip(module.named_parameters(), self.masters, strict=True):
            plain = parameter.ndim == 2 and "embed" not in name and "tagger" not in name
            (matrices if plain else others).append(master)
        self.muon = torch.optim.Muon(
            matrices,
            lr=MUON_RATE,
            momentum=0.95,
            weight_decay=DECAY,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, step: int) -> float:
        """Apply the gradients of the network to the masters, and copy them back. Returns the
        gradient norm.
        """
        progress = step / self.steps
        cosine = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))
        scale = min(1.0, (step + 1) / WARMUP) * cosine
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = float(nn.utils.clip_grad_norm_(self.masters, CLIP))
        for optimiser, rate in ((self.muon, MUON_RATE), (self.adam, ADAM_RATE)):
            for group in optimiser.param_groups:
                group["lr"] = rate * scale
            optimiser.step()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                parameter.copy_(master)
        return norm


class Drawn(torch.utils.data.IterableDataset[Batch]):
    """The batches of a run, drawn in a process of their own."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        rules = ImageRules()
        maker = SampleMaker(tokenizer, rules.mean, rules.std)
        pad = tokenizer.token_to_id("<|endoftext|>")
        assert pad is not None
        plan = self.plan
        return batches(maker, plan.seed, plan.steps, plan.size, pad)


def save(model: Qwen2VL, folder: Path) -> None:
    """Write model.safetensors in bfloat16 under the hub's names; a tied head is not stored."""
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    partial = folder / "model.safetensors.partial"
    save_file(tensors, str(partial), metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")


def train(folder: Path, plan: Plan) -> None:
    """Write the folder's files and train; the weights are saved every five hundred steps."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(1)
    write_folder(folder)
    loader = torch.utils.data.DataLoader(
        Drawn(folder, plan),
        batch_size=None,
        num_workers=plan.workers,
        prefetch_factor=8 if plan.workers else None,
    )
    steps, dtype = plan.steps, plan.dtype
    model = Qwen2VL(tiny_config())
    probe = replace(plan, seed=plan.seed + 1, steps=4, size=4 * plan.size)
    initialize(model, next(iter(Drawn(folder, probe))).patches)
    trainee = Trainee(model)
    stream = iter(loader)
    optimiser = Optimiser(trainee, steps, dtype)
    started, seen, averages = time.monotonic(), 0, np.zeros(2)
    for step, batch in enumerate(stream):
        batch = Batch(
            batch.input_ids,
            batch.labels,
            batch.patches.to(dtype),
            batch.grids,
            batch.tags,
            batch.is_clip,
        )
        answer, tags = trainee.loss(batch)
        (answer + AUXILIARY_WEIGHT * tags).backward()  # type: ignore[no-untyped-call]
        norm = optimiser.step(step)
        seen += len(batch.input_ids)
        averages = 0.98 * averages + 0.02 * np.array([answer.item(), tags.item()])
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            left = seconds / (step + 1) * (steps - step - 1)
            shown = averages / (1 - 0.98 ** (step + 1))
            line = {
                "step": step,
                "of": steps,
                "answer": round(shown[0], 4),
                "tags": round(shown[1], 4),
                "norm": round(norm, 2),
                "samples": seen,
                "samples_s": round(seen / seconds, 1),
                "left_min": round(left / 60, 1),
            }
            print(json.dumps(line), flush=True)
        if step % 500 == 499 or step == steps - 1:
            save(model, folder)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint.")
    add = parser.add_argument
    add("--out", type=Path, default=CHECKPOINT, help="folder to write (default: the shipped one)")
    add("--steps", type=int, default=Plan.steps)
    add("--batch", type=int, default=Plan.size, help="pictures in a batch; clips are half as many")
    add("--seed", type=int, default=Plan.seed)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--workers", type=int, default=Plan.workers, help="processes that draw")
    told = parser.parse_args()
    dtype: torch.dtype = getattr(torch, told.dtype)
    train(told.out, Plan(told.steps, told.batch, told.seed, dtype, told.workers))


if __name__ == "__main__":
    main()
