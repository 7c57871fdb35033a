"""Turns requests into completions: a loaded network behind a queue.

Rows enter as soon as there is room and leave at the step that finishes them; a common beginning of
prompts is computed once. Usable without Ray. It does not know files or rows of tables: ids and
uint8 patches come in, ids go out; strings only as the bytes in which stop strings are looked for.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Self

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
from mediamill.model.engine_core.block_hash import MediaNames, block_hashes, content_name
from mediamill.model.engine_core.contiguous_cache import ContiguousCache
from mediamill.model.engine_core.default_batch import default_batch_rows
from mediamill.model.engine_core.engine_core import EngineCore
from mediamill.model.engine_core.kv_budget import cache_tokens as measured_cache_tokens
from mediamill.model.engine_core.model_runner import Cache, ModelRunner
from mediamill.model.engine_core.output_constraints import OutputConstraints
from mediamill.model.engine_core.paged_cache import PagedCache
from mediamill.model.engine_core.request_checks import placed_media, request_problem
from mediamill.model.engine_core.scheduler import SchedulerLimits
from mediamill.model.engine_core.sequence import Row
from mediamill.model.engine_core.stats import EngineStats
from mediamill.model.families.qwen2_vl.config import MRopeRule, load_config
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.inputs import VisualKind
from mediamill.model.layers.attention import AttentionName, check_attention
from mediamill.model.layers.collectives import SINGLE_RANK, Collectives
from mediamill.model.layers.dtypes import dtype_of
from mediamill.model.layers.kernels import fastest_attention
from mediamill.model.layers.optimize import optimize_for_inference
from mediamill.model.layers.shards import WHOLE, Shard
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.requests import Completion, FinishReason, Request, Score, failed
from mediamill.model.sampling import GenerationRule
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.model.weights import load_model

__all__ = [
    "Completion",
    "Engine",
    "EngineStats",
    "FinishReason",
    "Request",
    "Score",
]

# Patches that one call of the vision tower may hold, to bound its activations.
VISION_PATCHES = 16384
# New tokens that one prefill may hold. Activations of more do not fit the caches of a CPU.
GPU_PREFILL_TOKENS, CPU_PREFILL_TOKENS = 8192, 1536
PAGE_SIZE = 16


class Engine:
    """A loaded model that answers requests. Not thread-safe: one caller at a time.

    batch_rows: rows that run at once, at most.
    load_tokenizer: called once, by the first request with stop strings or a JSON schema; None
        refuses those.
    page_size: tokens of a page of the cache; None: 16 on a GPU, and on a CPU no pages but rows in
        one piece, which reads faster there.
    cache_tokens: room of the cache; None measures the memory that is free at the first request.
    prefill_tokens: new tokens in one prefill, at most, but for a request that alone has more; None:
        8192 on a GPU, 1536 on a CPU.
    share_prefixes: a common beginning of prompts is computed once. Never done where the rotary
        frequencies follow the length of each sequence.
    graphs: on a GPU, decode steps are captured as CUDA graphs and replayed.
    """

    def __init__(
        self,
        model: Qwen2VL,
        rules: dict[VisualKind, ImageRules],
        defaults: GenerationDefaults,
        batch_rows: int = 32,
        attention: AttentionName = "sdpa",
        load_tokenizer: Callable[[], Tokenizer] | None = None,
        *,
        page_size: int | None = None,
        cache_tokens: int | None = None,
        prefill_tokens: int | None = None,
        vision_patches: int = VISION_PATCHES,
        share_prefixes: bool = True,
        graphs: bool = True,
    ) -> None:
        for name, value in (
            ("batch_rows", batch_rows),
            ("page_size", page_size),
            ("cache_tokens", cache_tokens),
            ("prefill_tokens", prefill_tokens),
            ("vision_patches", vision_patches),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.model = model
        self.rules = rules
        self.defaults = defaults
        self.batch_rows = batch_rows
        self.attention: AttentionName = attention
        self._wording = OutputConstraints(load_tokenizer, model.config.text.vocab_size)
        on_cpu = model.device.type == "cpu"
        self._page_size = PAGE_SIZE if page_size is None and not on_cpu else page_size
        self._cache_tokens = cache_tokens
        most = prefill_tokens or (CPU_PREFILL_TOKENS if on_cpu else GPU_PREFILL_TOKENS)
        self._limits = SchedulerLimits(most, vision_patches)
        self._shares = share_prefixes and not model.config.text.rope.follows_length
        self._graphs = graphs
        self._names = MediaNames()
        self._open: set[str] = set()
        self.steps = ModelRunner(model, rules, attention, vision_patches)
        self._core = EngineCore(self.steps, self._make_cache, self._limits, self._shares)

    @classmethod
    def load(
        cls,
        folder: str | Path | Folder,
        device: str = "auto",
        dtype: str = "auto",
        batch_rows: int | None = None,
        attention: str = "auto",
        mrope: MRopeRule = "original",
        *,
        page_size: int | None = None,
        cache_tokens: int | None = None,
        prefill_tokens: int | None = None,
        vision_patches: int = VISION_PATCHES,
        share_prefixes: bool = True,
        graphs: bool = True,
        shard: Shard = WHOLE,
        ranks: Collectives = SINGLE_RANK,
    ) -> Self:
        """Load a hub-format folder, from a path or any fsspec URL.

        device: a torch device, or "auto": the first GPU if there is one. dtype: "float32",
            "bfloat16", "float16", or "auto": the file's own on a GPU, float32 on a CPU. batch_rows:
            None = 64 on a CPU, 256 on a GPU. attention: "auto" (the fastest that can run here),
            "sdpa", "eager", "flash" or "products". mrope: how videos are positioned; "original" as
            the model was trained, "hf5" as transformers 5 does. shard, ranks: see
            model/tensor_parallel/.
        Raises ModelError when the folder cannot be used, ValueError for the other arguments.
        """
        folder = Folder.of(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = dtype_of(dtype, device)
        if mrope not in ("original", "hf5"):
            raise ValueError(f"mrope is {mrope!r}, expected original or hf5")
        # Before weights are read for nothing; and again below, where the dtype is known.
        if attention != "auto":
            check_attention(attention, torch.device(device), kind or torch.bfloat16)
        config = load_config(folder, mrope)
        rules: dict[VisualKind, ImageRules] = {
            "image": ImageRules.from_checkpoint(folder, "image"),
            "video": ImageRules.from_checkpoint(folder, "video"),
        }
        defaults = GenerationDefaults.load(folder)
        model = load_model(folder, kind, device, config, shard, ranks)
        kernel = attention if attention != "auto" else fastest_attention(model.device, model.dtype)
        name = check_attention(kernel, model.device, model.dtype)
        optimize_for_inference(model)
        return cls(
            model,
            rules,
            defaults,
            default_batch_rows(model.device.type == "cuda") if batch_rows is None else batch_rows,
            name,
            lambda: Tokenizer.load(folder),
            page_size=page_size,
            cache_tokens=cache_tokens,
            prefill_tokens=prefill_tokens,
            vision_patches=vision_patches,
            share_prefixes=share_prefixes,
            graphs=graphs,
        )

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """One completion per request, as they finish. Requests are pulled as rows become free.

        A request that can never be answered (malformed, longer than the context or the cache) is
        answered alone with an error. Raises ValueError for an id that is still unanswered. Where
        the caller stops early, what is still unanswered is cancelled.
        """
        source = iter(requests)
        mine: set[str] = set()
        try:
            while True:
                # Also bounds those that are answered at once, with an error.
                for request in islice(source, self._wanted):
                    self.add(request)
                    mine.add(request.id)
                if not mine:
                    return  # nothing was pulled, and nothing of it is left
                found = self.step()
                # Completions of others wait for those who step next.
                others = [one for one in found if one.id not in mine]
                self._core.done += others
                self._open.update(one.id for one in others)
                for completion in found:
                    if completion.id in mine:
                        mine.remove(completion.id)
                        yield completion
        finally:
            for name in mine:
                self.cancel(name)
            self._core.done = [one for one in self._core.done if one.id not in mine]
            self._open -= mine

    @property
    def _wanted(self) -> int:
        """Requests to pull: enough for every row that is free, so that one at least is waiting."""
        free = max(1, self.batch_rows - len(self._core.running.rows))
        return max(0, free - len(self._core.scheduler.waiting))

    @property
    def unfinished(self) -> int:
        """Requests whose completions have not been given out."""
        return len(self._open)

    def add(self, request: Request) -> None:
        """Put a request in the queue. Its completion comes out of `step`, an error's too.

        Raises ValueError for the id of a request that is not answered yet.
        """
        if request.id in self._open:
            raise ValueError(f"the request {request.id!r} is not answered yet; ids must differ")
        self._open.add(request.id)
        try:
            row = self._row(request)
        except BaseException:
            self._open.remove(request.id)
            raise
        if isinstance(row, str):
            self._core.refuse(failed(request, row))
        else:
            self._core.scheduler.waiting.append(row)

    def step(self) -> list[Completion]:
        """Take in what there is room for, make one token for each running row, and give out what
        is finished.

        Out of memory is no error here: less is done at once, and what was in hand is done again; a
        request that fails alone is answered with an error. Any other exception leaves all requests
        as they were before the step: step again, or `reset`.
        """
        with torch.inference_mode():
            self._core.step(self.batch_rows)
        done, self._core.done = self._core.done, []
        self._open -= {one.id for one in done}
        return done

    def cancel(self, request_id: str) -> bool:
        """Stop a request; whether it was still unfinished. It is then answered, by the next step,
        with finish_reason "cancelled" and what it has said so far.
        """
        with torch.inference_mode():
            return self._core.cancel(request_id)

    def drain(self) -> Iterator[Completion]:
        """The completions of all that has been added, as they finish."""
        while self.unfinished:
            yield from self.step()

    def reset(self) -> None:
        """Forget every request, without an answer."""
        with torch.inference_mode():
            self._core.clear()
        self._open.clear()

    def stats(self) -> EngineStats:
        """What has been done so far."""
        return self._core.stats()

    def _row(self, request: Request) -> Row | str:
        """The request as a row, or why it can never be answered."""
        config = self.model.config
        problem = request_problem(request, config, self.rules)
        if problem:
            return problem
        rule = request.sampling.rule(self.defaults, len(request.input_ids))
        if problem := self._rule_problem(request, rule):
            return problem
        try:
            positions, following, pads = placed_media(request.input_ids, request.visuals, config)
        except ValueError as error:
            return str(error)
        context = config.text.context_length
        words = self._wording
        matcher = words.matcher(rule) if request.mode == "generate" else None
        row = Row(request, rule, context, words.tokenizer, positions, following, matcher)
        cache = self._core.open_cache()
        if row.needed > cache.capacity:
            return (
                f"prompt and answer need room for {row.needed} tokens, and the cache has "
                f"{cache.capacity}"
            )
        row.pads = pads
        if self._shares:
            names = request.media_names
            media = [
                (pad, self._names.of(one.patches) if names is None else content_name(names[i]))
                for i, (pad, one) in enumerate(zip(pads, request.visuals, strict=True))
            ]
            row.names = block_hashes(row.prompt, media, cache.page_size)
        return row

    def _make_cache(self) -> Cache:
        text, kind, device = self.model.config.text, self.model.dtype, self.model.device
        limits = self._limits
        tokens = self._cache_tokens or measured_cache_tokens(
            self.model,
            self.rules,
            self.attention,
            self.batch_rows,
            limits.prefill_tokens,
            limits.vision_patches,
        )
        # All ranks have to admit the same rows.
        tokens = self.model.collectives.all_reduce_min(tokens, device)
        if self._page_size is None:
            return ContiguousCache(text, tokens, PAGE_SIZE, kind, device, self.attention)
        cache = PagedCache(text, tokens, self._page_size, kind, device)
        if self._graphs and device.type == "cuda":
            self.steps.replay_graphs(cache, self.batch_rows)
        return cache

    def _rule_problem(self, request: Request, rule: GenerationRule) -> str | None:
        """Why the request's rule cannot be followed, or None."""
        if request.mode != "generate":
            return None
        if rule.max_new_tokens < 1:
            return (
                f"the prompt has {len(request.input_ids)} tokens, and generation_config.json "
                f"allows {self.defaults.max_length} together with the answer; expected fewer, or "
                "max_new_tokens"
            )
        return self._wording.problem(rule)
