"""Trains the embedded checkpoint: `python -m mediamill.model.tiny.train --out FOLDER`.

Recipe: Muon for matrices (Keller Jordan 2024), AdamW for the rest, one cosine schedule over the
whole run, and an auxiliary loss by which each visual token predicts the tags of its own area.
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

from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.layers.attention import PackedCausalAttention
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.tiny import CHECKPOINT
from mediamill.model.tiny.folder import tiny_config, write_folder
from mediamill.model.tiny.samples import SampleMaker, TrainingBatch, batches
from mediamill.model.tiny.scenes import TAGS

AUXILIARY_WEIGHT = 2.0
POSITIVE_WEIGHT = 3.0
WARMUP = 60
FLOOR = 0.02
MUON_RATE, ADAM_RATE, DECAY, CLIP = 3.5e-3, 2e-3, 0.05, 1.0


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of one training.

    steps: number of batches. size: pictures in a batch.
    workers: processes that draw samples; with 0 the training process draws them.
    """

    steps: int = 11_000
    size: int = 48
    seed: int = 0
    dtype: torch.dtype = torch.bfloat16
    workers: int = 1


class ModelWithTagger(nn.Module):
    """The network, and a head for the auxiliary loss that is not saved."""

    def __init__(self, model: Qwen2VL) -> None:
        super().__init__()
        self.model = model
        self.tagger = nn.Linear(model.config.text.hidden_size, len(TAGS))

    def loss(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the cross entropy of the answers and the binary cross entropy of the tags."""
        model = self.model
        tokens = model.visual(batch.patches, batch.grids, "eager")
        images, videos = (None, tokens) if batch.is_clip else (tokens, None)
        rows, length = batch.input_ids.shape
        embeddings = model.embed(batch.input_ids.flatten(), images, videos)
        grids = ([], batch.grids) if batch.is_clip else (batch.grids, [])
        positions, _ = model.rope_index(batch.input_ids, *grids)
        backend = PackedCausalAttention([length] * rows, "eager")
        hidden = model.hidden_states(embeddings, positions.flatten(1), backend)
        target = batch.labels.roll(-1, dims=1).flatten()
        is_predicted = target != -100
        logits = model.logits(hidden[is_predicted]).float()
        answer = F.cross_entropy(logits, target[is_predicted])
        weight = torch.tensor(POSITIVE_WEIGHT)
        tags = F.binary_cross_entropy_with_logits(
            self.tagger(tokens).float(), batch.tags, pos_weight=weight
        )
        return answer, tags


@torch.no_grad()
def initialize(model: Qwen2VL, patches: torch.Tensor) -> None:
    """Draws the weights anew, in place.

    Weights are N(0, 1 / sqrt(fan_in)), those of residual outputs divided by sqrt(2 * depth), and
    the patch projection is a PCA of the given patches.
    """
    vision, text = model.config.vision, model.config.text
    residual = ("attn.proj.weight", "mlp.fc2.weight", "o_proj.weight", "down_proj.weight")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif name.endswith("embed_tokens.weight"):
            parameter.normal_(std=0.08)
        elif parameter.ndim >= 2:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        if name.endswith(residual):
            depth = vision.depth if name.startswith("visual.") else text.num_hidden_layers
            parameter.div_(math.sqrt(2 * depth))
    centered = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(centered.T @ centered / len(patches))
    largest = values.argsort(descending=True)[: vision.embed_dim]
    kernel = (vectors[:, largest] * values[largest].clamp_min(1e-6) ** -0.4).T
    projection = model.visual.patch_embed.proj.weight
    projection.copy_(kernel.reshape(projection.shape))


class Optimizer:
    """Muon and AdamW over float32 master copies of the weights of a bfloat16 network."""

    def __init__(self, module: ModelWithTagger, steps: int, dtype: torch.dtype) -> None:
        self.steps = steps
        self.masters = [p.detach().float().clone() for p in module.parameters()]
        module.to(dtype)
        for part in (module.model.visual, module.model.model):
            part.reset_frequencies(torch.device("cpu"))
        self.parameters = list(module.parameters())
        matrices: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for (name, parameter), master in zip(module.named_parameters(), self.masters, strict=True):
            is_matrix = parameter.ndim == 2 and "embed" not in name and "tagger" not in name
            (matrices if is_matrix else others).append(master)
        self.muon = torch.optim.Muon(
            matrices,
            lr=MUON_RATE,
            momentum=0.95,
            weight_decay=DECAY,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, step: int) -> float:
        """Applies the network's gradients to the master weights and copies these back.

        Returns the norm of the gradients.
        """
        cosine = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step / self.steps)))
        scale = min(1.0, (step + 1) / WARMUP) * cosine
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = float(nn.utils.clip_grad_norm_(self.masters, CLIP))
        for optimizer, rate in ((self.muon, MUON_RATE), (self.adam, ADAM_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                parameter.copy_(master)
        return norm


class TrainingBatches(torch.utils.data.IterableDataset[TrainingBatch]):
    """The batches of a training, drawn in the processes of a DataLoader."""

    def __init__(self, folder: Path, config: TrainingConfig) -> None:
        self.folder, self.config = folder, config

    def __iter__(self) -> Iterator[TrainingBatch]:
        torch.set_num_threads(1)
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        rules = ImageRules()
        maker = SampleMaker(tokenizer, rules.mean, rules.std)
        pad = tokenizer.token_to_id("<|endoftext|>")
        assert pad is not None
        config = self.config
        return batches(maker, config.seed, config.steps, config.size, pad)


def save(model: Qwen2VL, folder: Path) -> None:
    """Writes model.safetensors in bfloat16 by the hub's names, without the tied head."""
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    partial = folder / "model.safetensors.partial"
    save_file(tensors, str(partial), metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")


def train(folder: Path, config: TrainingConfig) -> None:
    """Writes the files of the folder and trains; saves the weights every five hundred steps."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    write_folder(folder)
    loader = torch.utils.data.DataLoader(
        TrainingBatches(folder, config),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=8 if config.workers else None,
    )
    steps, dtype = config.steps, config.dtype
    model = Qwen2VL(tiny_config())
    pca_config = replace(config, seed=config.seed + 1, steps=4, size=4 * config.size)
    initialize(model, next(iter(TrainingBatches(folder, pca_config))).patches)
    module = ModelWithTagger(model)
    optimizer = Optimizer(module, steps, dtype)
    started, samples, averages = time.monotonic(), 0, np.zeros(2)
    for step, batch in enumerate(loader):
        batch = replace(batch, patches=batch.patches.to(dtype))
        answer, tags = module.loss(batch)
        (answer + AUXILIARY_WEIGHT * tags).backward()  # type: ignore[no-untyped-call]
        norm = optimizer.step(step)
        samples += len(batch.input_ids)
        averages = 0.98 * averages + 0.02 * np.array([answer.item(), tags.item()])
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            remaining_s = seconds / (step + 1) * (steps - step - 1)
            unbiased = averages / (1 - 0.98 ** (step + 1))
            line = {
                "step": step,
                "of": steps,
                "answer": round(unbiased[0], 4),
                "tags": round(unbiased[1], 4),
                "norm": round(norm, 2),
                "samples": samples,
                "samples_s": round(samples / seconds, 1),
                "left_min": round(remaining_s / 60, 1),
            }
            print(json.dumps(line), flush=True)
        if step % 500 == 499 or step == steps - 1:
            save(model, folder)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Train the embedded checkpoint.")
    add = parser.add_argument
    add("--out", type=Path, default=CHECKPOINT, help="folder to write (default: the shipped one)")
    add("--steps", type=int, default=TrainingConfig.steps)
    add("--batch", type=int, default=TrainingConfig.size, help="pictures; clips are half as many")
    add("--seed", type=int, default=TrainingConfig.seed)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--workers", type=int, default=TrainingConfig.workers, help="processes that draw")
    options = parser.parse_args()
    dtype: torch.dtype = getattr(torch, options.dtype)
    config = TrainingConfig(options.steps, options.batch, options.seed, dtype, options.workers)
    train(options.out, config)


if __name__ == "__main__":
    main()
