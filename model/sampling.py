"""What a request asks of generation, and the checkpoint's own defaults for it.

Turns generation_config.json and a request's wishes into one complete rule, and logits into token
ids.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from model.errors import ModelError
from model.image_rules import read_json


@dataclass(frozen=True)
class Sampling:
    """How one request is generated. None means: as the checkpoint's generation_config.json says.

    Greedy decoding only: a temperature above 0 is refused.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if self.temperature != 0.0:
            raise ValueError(
                f"temperature is {self.temperature}, expected 0: only greedy decoding is supported"
            )
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}, expected a number above 0"
            )


@dataclass(frozen=True)
class GenerationDefaults:
    """The part of generation_config.json that greedy decoding obeys."""

    eos_token_ids: tuple[int, ...]
    repetition_penalty: float = 1.0

    @classmethod
    def load(cls, folder: Path) -> "GenerationDefaults":
        """Read `folder`/generation_config.json, and config.json for an end token where the former
        is silent.

        Raises ModelError when neither names an end token, or a file is malformed.
        """
        path = folder / "generation_config.json"
        raw = read_json(path) if path.exists() else {}
        eos = raw.get("eos_token_id", read_json(folder / "config.json").get("eos_token_id"))
        ids = tuple(eos) if isinstance(eos, list) else (eos,)
        if not ids or not all(isinstance(i, int) for i in ids):
            raise ModelError(
                f"{path}: eos_token_id is {eos!r}, expected a token id or a list of them"
            )
        penalty = raw.get("repetition_penalty")
        if penalty is not None and (not isinstance(penalty, int | float) or penalty <= 0):
            raise ModelError(
                f"{path}: repetition_penalty is {penalty!r}, expected a number above 0"
            )
        return cls(ids, 1.0 if penalty is None else float(penalty))


def penalise_repetition(
    logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor
) -> torch.Tensor:
    """Logits with every token already seen made less likely (arXiv 1909.05858, section 4.1).

    logits: float32 [B, V]; seen: bool [B, V], prompt ids included; penalty: float32 [B, 1], 1 for
        none.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
