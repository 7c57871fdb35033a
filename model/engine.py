"""Turns a stream of requests into a stream of completions, in batches, greedily.

One call of the vision tower and one packed prefill serve a whole batch; rows that finish leave the
batch. Usable without Ray. It does not know strings, files or rows: ids and uint8 patches come in,
ids go out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from model.attention import DecodeStep, KeyValueCache, PackedCausal
from model.image_rules import ImageRules
from model.inputs import VisualInput, VisualKind
from model.patches import normalize
from model.qwen2_vl import Qwen2VL
from model.rope import mrope_positions
from model.sampling import GenerationDefaults, Sampling, penalise_repetition
from model.weights import load_model

# Rows of normalised patches that one call of the vision tower may hold, to bound its activations.
VISION_PATCHES = 16384
FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Request:
    """One prompt. input_ids: token ids with every pad token expanded; visuals: its media, in prompt
    order.
    """

    id: str
    input_ids: Sequence[int]
    visuals: tuple[VisualInput, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Completion:
    """What became of a request.

    output_ids: generated ids, the end token included. mean_logprob: mean natural log-probability of
        them.
    error: one sentence when finish_reason is "error", else None.
    """

    id: str
    output_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    visual_tokens: int
    mean_logprob: float
    error: str | None = None


class Engine:
    """A loaded model that answers requests. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        model: Qwen2VL,
        rules: dict[VisualKind, ImageRules],
        defaults: GenerationDefaults,
        batch_rows: int = 32,
    ) -> None:
        self.model = model
        self.rules = rules
        self.defaults = defaults
        self.batch_rows = batch_rows

    @classmethod
    def load(
        cls, folder: Path | str, device: str = "auto", dtype: str = "auto", batch_rows: int = 32
    ) -> "Engine":
        """Load a hub-format folder.

        device: a torch device, or "auto": the first GPU if there is one. dtype: "float32",
            "bfloat16", "float16", or "auto": the file's own on a GPU, float32 on a CPU. Raises
            ModelError when the folder cannot be used.
        """
        folder = Path(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(
            dtype
        )
        if dtype == "auto" and device == "cpu":
            kind = torch.float32
        elif dtype != "auto" and kind is None:
            raise ValueError(f"dtype is {dtype!r}, expected auto, float32, bfloat16 or float16")
        rules: dict[VisualKind, ImageRules] = {
            "image": ImageRules.from_checkpoint(folder, "image"),
            "video": ImageRules.from_checkpoint(folder, "video"),
        }
        return cls(
            load_model(folder, kind, device), rules, GenerationDefaults.load(folder), batch_rows
        )

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion per request, as they finish. Requests are pulled a batch at a time.

        A request that can never be answered (malformed, longer than the context) is answered alone
        with an error.
        """
        batch: list[Request] = []
        for request in requests:
            problem = self._problem(request)
            if problem:
                yield Completion(
                    request.id,
                    [],
                    "error",
                    len(request.input_ids),
                    _visual_tokens(request),
                    0.0,
                    problem,
                )
                continue
            batch.append(request)
            if len(batch) == self.batch_rows:
                yield from self._run(batch)
                batch = []
        if batch:
            yield from self._run(batch)

    def _problem(self, request: Request) -> str | None:
        """Why the request can never be answered, or None."""
        config = self.model.config
        limit = config.text.max_position_embeddings
        if not request.input_ids:
            return "the prompt is empty"
        if len(request.input_ids) >= limit:
            return (
                f"the prompt has {len(request.input_ids)} tokens, and the model's context is "
                f"{limit}"
            )
        if min(request.input_ids) < 0 or max(request.input_ids) >= config.text.vocab_size:
            return f"the prompt holds a token id outside 0..{config.text.vocab_size - 1}"
        for kind, token in (("image", config.image_token_id), ("video", config.video_token_id)):
            pads = sum(1 for i in request.input_ids if i == token)
            tokens = sum(v.tokens for v in request.visuals if v.kind == kind)
            if pads != tokens:
                return f"the prompt has {pads} {kind} tokens, and its {kind}s have {tokens}"
        for visual in request.visuals:
            t, h, w = visual.grid_thw
            if (
                visual.patches.dtype != torch.uint8
                or visual.patches.shape[0] != t * h * w
                or visual.tokens == 0
            ):
                return (
                    f"the {visual.kind}'s patches {list(visual.patches.shape)} do not fit its "
                    f"grid {visual.grid_thw}"
                )
        return None

    @torch.inference_mode()
    def _run(self, batch: list[Request]) -> Iterator[Completion]:
        rows = [
            _Row(request, self.defaults, self.model.config.text.max_position_embeddings)
            for request in batch
        ]
        cache, logits, following = self._prefill(rows)
        penalty = torch.tensor([[row.penalty] for row in rows], device=self.model.device)
        seen = self._seen(rows) if any(row.penalty != 1.0 for row in rows) else None
        while True:
            tokens, logprobs = self._choose(logits, seen, penalty)
            for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
                row.append(token, logprob)
            yield from (row.completion() for row in rows if row.finished)
            kept = [i for i, row in enumerate(rows) if not row.finished]
            if not kept:
                return
            if len(kept) < len(rows):
                index = torch.tensor(kept, device=self.model.device)
                rows, tokens, following, penalty = (
                    [rows[i] for i in kept],
                    tokens[index],
                    following[index],
                    penalty[index],
                )
                seen = None if seen is None else seen[index]
                cache.keep(index)
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            logits = self._decode(tokens, following, cache)
            following = following + 1

    def _prefill(self, rows: "list[_Row]") -> tuple[KeyValueCache, torch.Tensor, torch.Tensor]:
        """Encode all media and prompts. Returns the cache, the last logits [B, V] and the next
        position of each row [B].
        """
        model, config = self.model, self.model.config
        requests = [row.request for row in rows]
        lengths = [len(request.input_ids) for request in requests]
        ids = torch.tensor(
            [i for request in requests for i in request.input_ids], device=model.device
        )
        embeddings = model.embed(
            ids, self._encode(requests, "image"), self._encode(requests, "video")
        )
        visual_ids = (config.image_token_id, config.video_token_id)
        placed = [
            mrope_positions(r.input_ids, [v.grid_thw for v in r.visuals], visual_ids, config.mrope)
            for r in requests
        ]
        positions = torch.cat([p for p, _ in placed], dim=1).to(model.device)
        text = config.text
        capacity = max(length + row.budget for length, row in zip(lengths, rows, strict=True))
        cache = KeyValueCache(
            text.num_hidden_layers,
            len(rows),
            text.num_key_value_heads,
            capacity,
            text.head_dim,
            model.dtype,
            model.device,
        )
        hidden = model.hidden_states(embeddings, positions, PackedCausal(lengths, cache=cache))
        cache.lengths += torch.tensor(lengths, device=model.device)
        last = torch.tensor(lengths, device=model.device).cumsum(0) - 1
        return (
            cache,
            model.logits(hidden[last]),
            torch.tensor([n for _, n in placed], device=model.device),
        )

    def _encode(self, requests: list[Request], kind: VisualKind) -> torch.Tensor | None:
        """Visual tokens of all media of one kind, in order: [tokens, hidden], or None when there
        are none.
        """
        media = [v for request in requests for v in request.visuals if v.kind == kind]
        rules, pieces, group, size = self.rules[kind], [], [], 0
        for i, visual in enumerate(media):
            group.append(visual)
            size += len(visual.patches)
            if size >= VISION_PATCHES or i == len(media) - 1:
                patches = torch.cat(
                    [
                        normalize(v.patches.to(self.model.device), rules.mean, rules.std)
                        for v in group
                    ]
                )
                pieces.append(self.model.visual(patches, [v.grid_thw for v in group]))
                group, size = [], 0
        return torch.cat(pieces) if pieces else None

    def _decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: KeyValueCache
    ) -> torch.Tensor:
        """One step: the last tokens [B] at `positions` [B] -> logits of the next ones [B, V]."""
        embeddings = self.model.embed(tokens)
        hidden = self.model.hidden_states(embeddings, positions.expand(3, -1), DecodeStep(cache))
        cache.lengths += 1
        return self.model.logits(hidden)

    @staticmethod
    def _choose(
        logits: torch.Tensor, seen: torch.Tensor | None, penalty: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The greedy tokens [B], and their log-probabilities [B] under the unpenalised logits."""
        wide = logits.float()
        tokens = (wide if seen is None else penalise_repetition(wide, seen, penalty)).argmax(dim=-1)
        return tokens, wide.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]

    def _seen(self, rows: "list[_Row]") -> torch.Tensor:
        seen = torch.zeros(
            len(rows), self.model.config.text.vocab_size, dtype=torch.bool, device=self.model.device
        )
        for i, row in enumerate(rows):
            seen[i, torch.tensor(row.request.input_ids, device=seen.device)] = True
        return seen


class _Row:
    """A request in the running batch, with what it has generated so far."""

    def __init__(self, request: Request, defaults: GenerationDefaults, context: int) -> None:
        wish = request.sampling
        self.request = request
        self.eos = wish.eos_token_ids if wish.eos_token_ids is not None else defaults.eos_token_ids
        self.penalty = wish.repetition_penalty or defaults.repetition_penalty
        # Never past the context: the positions beyond it were not trained.
        self.budget = min(wish.max_new_tokens, context - len(request.input_ids))
        self.output: list[int] = []
        self.logprob = 0.0

    def append(self, token: int, logprob: float) -> None:
        self.output.append(token)
        self.logprob += logprob

    @property
    def finished(self) -> bool:
        return self.output[-1] in self.eos or len(self.output) >= self.budget

    def completion(self) -> Completion:
        request = self.request
        reason: FinishReason = "stop" if self.output[-1] in self.eos else "length"
        mean = self.logprob / len(self.output)
        return Completion(
            request.id, self.output, reason, len(request.input_ids), _visual_tokens(request), mean
        )


def _visual_tokens(request: Request) -> int:
    return sum(visual.tokens for visual in request.visuals)
