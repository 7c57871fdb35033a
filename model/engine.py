"""Turns a stream of requests into a stream of completions, in batches.

One call of the vision tower and one packed prefill serve a whole batch; rows that finish leave the
batch. Usable without Ray. It does not know files or rows of tables: ids and uint8 patches come in,
ids go out; strings only as the bytes in which stop strings are looked for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from model.attention import (
    AttentionName,
    DecodeStep,
    KeyValueCache,
    PackedCausal,
    check_attention,
)
from model.chooser import Choice, Chooser
from model.config import MRopeRule, load_config
from model.errors import ModelError
from model.folder import Folder
from model.generation_defaults import GenerationDefaults
from model.image_rules import ImageRules
from model.inputs import VisualKind
from model.qwen2_vl import Qwen2VL
from model.requests import Completion, FinishReason, Request, Row, failed
from model.rope import mrope_positions
from model.tokenizer import Tokenizer
from model.weights import load_model

__all__ = ["Completion", "Engine", "FinishReason", "Request"]

# Rows of normalised patches that one call of the vision tower may hold, to bound its activations.
VISION_PATCHES = 16384


class Engine:
    """A loaded model that answers requests. Not thread-safe: one caller at a time.

    load_tokenizer: called once, by the first request that has stop strings; None refuses those.
    """

    def __init__(
        self,
        model: Qwen2VL,
        rules: dict[VisualKind, ImageRules],
        defaults: GenerationDefaults,
        batch_rows: int = 32,
        attention: AttentionName = "sdpa",
        load_tokenizer: Callable[[], Tokenizer] | None = None,
    ) -> None:
        self.model = model
        self.rules = rules
        self.defaults = defaults
        self.batch_rows = batch_rows
        self.attention: AttentionName = attention
        self._load_tokenizer = load_tokenizer
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path | Folder,
        device: str = "auto",
        dtype: str = "auto",
        batch_rows: int = 32,
        attention: str = "sdpa",
        mrope: MRopeRule = "original",
    ) -> "Engine":
        """Load a hub-format folder, from a path or any fsspec URL.

        device: a torch device, or "auto": the first GPU if there is one. dtype: "float32",
            "bfloat16", "float16", or "auto": the file's own on a GPU, float32 on a CPU. attention:
            "sdpa", "eager" or "flash". mrope: how videos are positioned; "original" as the model
            was trained, "hf5" as transformers 5 does. Raises ModelError when the folder cannot be
            used, ValueError for the other arguments.
        """
        folder = Folder.of(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(
            dtype
        )
        if dtype == "auto" and device == "cpu":
            kind = torch.float32
        elif dtype != "auto" and kind is None:
            raise ValueError(f"dtype is {dtype!r}, expected auto, float32, bfloat16 or float16")
        if mrope not in ("original", "hf5"):
            raise ValueError(f"mrope is {mrope!r}, expected original or hf5")
        # Before weights are read for nothing; and again below, where the dtype is known.
        check_attention(attention, torch.device(device), kind or torch.bfloat16)
        config = load_config(folder, mrope)
        rules: dict[VisualKind, ImageRules] = {
            "image": ImageRules.from_checkpoint(folder, "image"),
            "video": ImageRules.from_checkpoint(folder, "video"),
        }
        defaults = GenerationDefaults.load(folder)
        model = load_model(folder, kind, device, config)
        name = check_attention(attention, model.device, model.dtype)
        return cls(model, rules, defaults, batch_rows, name, lambda: Tokenizer.load(folder))

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion per request, as they finish. Requests are pulled a batch at a time.

        A request that can never be answered (malformed, longer than the context) is answered alone
        with an error.
        """
        batch: list[Request] = []
        for request in requests:
            problem = self._problem(request)
            if problem:
                yield failed(request, problem)
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
        limit = config.text.context_length
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
            values = self.rules[visual.kind].patch_values(visual.kind)
            if (
                visual.patches.dtype != torch.uint8
                or visual.patches.shape != (t * h * w, values)
                or visual.tokens == 0
            ):
                return (
                    f"the {visual.kind}'s patches {list(visual.patches.shape)} do not fit its "
                    f"grid {visual.grid_thw}"
                )
        return self._rule_problem(request)

    def _rule_problem(self, request: Request) -> str | None:
        """Why the request's rule cannot be followed, or None."""
        rule = request.sampling.rule(self.defaults, len(request.input_ids))
        if rule.max_new_tokens < 1:
            return (
                f"the prompt has {len(request.input_ids)} tokens, and generation_config.json "
                f"allows {self.defaults.max_length} together with the answer; expected fewer, or "
                "max_new_tokens"
            )
        if rule.stop and self._tokenizer is None:
            if self._load_tokenizer is None:
                return "the request has stop strings, and the engine has no tokenizer"
            try:
                tokenizer = self._load_tokenizer()
                tokenizer.token_bytes(0)
            except ModelError as error:
                return f"the request has stop strings, and {error}"
            self._tokenizer = tokenizer
        return None

    @torch.inference_mode()
    def _run(self, batch: list[Request]) -> Iterator[Completion]:
        config = self.model.config.text
        rows = []
        for request in batch:
            rule = request.sampling.rule(self.defaults, len(request.input_ids))
            rows.append(Row(request, rule, config.context_length, self._tokenizer))
        cache, logits, following = self._prefill(rows)
        chooser = Chooser(
            [row.rule for row in rows],
            [request.input_ids for request in batch],
            config.vocab_size,
            self.model.device,
        )
        while True:
            choice = chooser.choose(logits)
            _append(rows, choice)
            yield from (row.completion() for row in rows if row.finished)
            kept = [i for i, row in enumerate(rows) if not row.finished]
            if not kept:
                return
            tokens = choice.tokens
            if len(kept) < len(rows):
                index = torch.tensor(kept, device=self.model.device)
                rows = [rows[i] for i in kept]
                tokens, following = tokens[index], following[index]
                chooser.keep(kept)
                cache.keep(index)
            span = max(len(row.request.input_ids) + len(row.output) for row in rows)
            logits = self._decode(tokens, following, cache, span)
            following = following + 1

    def _prefill(self, rows: list[Row]) -> tuple[KeyValueCache, torch.Tensor, torch.Tensor]:
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
        attend = PackedCausal(lengths, self.attention, cache)
        hidden = model.hidden_states(embeddings, positions, attend)
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
                    [rules.normalize(v.patches.to(self.model.device), kind) for v in group]
                )
                grids = [v.grid_thw for v in group]
                pieces.append(self.model.visual(patches, grids, self.attention))
                group, size = [], 0
        return torch.cat(pieces) if pieces else None

    def _decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: KeyValueCache, span: int
    ) -> torch.Tensor:
        """One step: the last tokens [B] at `positions` [B] -> logits of the next ones [B, V]. span:
        tokens of the longest sequence, these included.
        """
        # A pad token that was generated is a token like others.
        embeddings = self.model.model.embed_tokens(tokens)
        attend = DecodeStep(cache, self.attention, span)
        hidden = self.model.hidden_states(embeddings, positions.expand(3, -1), attend)
        cache.lengths += 1
        return self.model.logits(hidden)


def _append(rows: Sequence[Row], choice: Choice) -> None:
    """Give each row its token. The one place of a step that waits for the device."""
    tops: list[list[tuple[int, float]]] = [[] for _ in rows]
    if choice.top_ids is not None and choice.top_logprobs is not None:
        pairs = zip(choice.top_ids.tolist(), choice.top_logprobs.tolist(), strict=True)
        tops = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    chosen = zip(choice.tokens.tolist(), choice.logprobs.tolist(), tops, strict=True)
    for row, (token, logprob, top) in zip(rows, chosen, strict=True):
        row.append(token, logprob, top)
