"""Answers requests with a loaded model, by continuous batching.

Sequences join the batch as soon as the KV cache has space for them, and leave it at the step that
finishes them; shared prefixes of prompts are computed once. Usable without Ray. Prompts are token
ids and uint8 patches, outputs are token ids; see `Chat` for text and files.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Self

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
from mediamill.model.engine_core.block_hash import TensorIds, block_hashes, named_media_id
from mediamill.model.engine_core.contiguous_cache import ContiguousCache
from mediamill.model.engine_core.default_batch import default_batch_rows
from mediamill.model.engine_core.engine_core import EngineCore
from mediamill.model.engine_core.kv_budget import cache_tokens as measured_cache_tokens
from mediamill.model.engine_core.kv_cache import Cache
from mediamill.model.engine_core.model_runner import ModelRunner
from mediamill.model.engine_core.output_constraints import OutputConstraints
from mediamill.model.engine_core.paged_cache import PagedCache
from mediamill.model.engine_core.request_checks import place_media, request_problem
from mediamill.model.engine_core.scheduler import SchedulerLimits
from mediamill.model.engine_core.sequence import Sequence
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

__all__ = ["Completion", "Engine", "EngineStats", "FinishReason", "Request", "Score"]

# Patches in one call of the vision tower, which bounds its activations.
VISION_PATCHES = 16384
# New tokens in one prefill. Activations of more do not fit into the caches of a CPU.
GPU_PREFILL_TOKENS, CPU_PREFILL_TOKENS = 8192, 1536
PAGE_SIZE = 16


class Engine:
    """A loaded model that answers requests. Not thread-safe: one caller at a time.

    Usage:
        engine = Engine.load("Qwen2-VL-2B-Instruct", dtype="bfloat16")
        request = Request("r1", input_ids, sampling=Sampling(max_new_tokens=64))
        for completion in engine.generate([request]):
            print(completion.id, completion.output_ids)
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
        """Makes an engine of a model that is loaded already; see `load`.

        batch_rows: sequences that run at once, at most.
        load_tokenizer: called once, by the first request with stop strings or a JSON schema; None
            refuses such requests.
        page_size: tokens of a page of the KV cache; None: 16 on a GPU; on a CPU a contiguous cache,
            which is faster to read there.
        cache_tokens: capacity of the KV cache; None measures the free memory at the first request.
        prefill_tokens: new tokens in one prefill, unless one request alone has more; None: 8192 on
            a GPU, 1536 on a CPU.
        vision_patches: patches in one call of the vision tower, unless one medium has more.
        share_prefixes: compute shared prefixes of prompts once. Never done if the rotary
            frequencies depend on the length of the sequence.
        graphs: on a GPU, capture decode steps as CUDA graphs and replay them.
        """
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
        self._constraints = OutputConstraints(load_tokenizer, model.config.text.vocab_size)
        on_cpu = model.device.type == "cpu"
        self._page_size = PAGE_SIZE if page_size is None and not on_cpu else page_size
        self._cache_tokens = cache_tokens
        prefill_tokens = prefill_tokens or (CPU_PREFILL_TOKENS if on_cpu else GPU_PREFILL_TOKENS)
        self._limits = SchedulerLimits(prefill_tokens, vision_patches)
        self._share_prefixes = share_prefixes and not model.config.text.rope.follows_length
        self._graphs = graphs
        self._tensor_ids = TensorIds()
        self._unanswered: set[str] = set()
        self.model_runner = ModelRunner(model, rules, attention, vision_patches)
        self._core = EngineCore(
            self.model_runner, self._make_cache, self._limits, self._share_prefixes
        )

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
        """Loads a checkpoint folder in hub format, from a path or any fsspec URL.

        device: a torch device, or "auto": the first GPU if there is one.
        dtype: "float32", "bfloat16", "float16", or "auto": the file's own on a GPU, float32 on a
            CPU.
        batch_rows: sequences that run at once; None: 64 on a CPU, 256 on a GPU.
        attention: "sdpa", "eager", "flash", "products", or "auto": the fastest that can run.
        mrope: how videos are positioned: "original", as the model was trained, or "hf5", as in
            transformers 5.
        shard, ranks: see model/tensor_parallel/.
        The other arguments are those of `__init__`.
        Raises ModelError if the folder cannot be used, ValueError for the other arguments.
        """
        folder = Folder.of(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        torch_dtype = dtype_of(dtype, device)
        if mrope not in ("original", "hf5"):
            raise ValueError(f"mrope is {mrope!r}, expected original or hf5")
        # Fail before the weights are read. Checked again below, where the dtype is known.
        if attention != "auto":
            check_attention(attention, torch.device(device), torch_dtype or torch.bfloat16)
        config = load_config(folder, mrope)
        kinds: tuple[VisualKind, ...] = ("image", "video")
        rules = {kind: ImageRules.from_checkpoint(folder, kind) for kind in kinds}
        defaults = GenerationDefaults.load(folder)
        if batch_rows is None:
            batch_rows = default_batch_rows(torch.device(device).type == "cuda")
        model = load_model(folder, torch_dtype, device, config, shard, ranks)
        kernel = attention if attention != "auto" else fastest_attention(model.device, model.dtype)
        optimize_for_inference(model)
        return cls(
            model,
            rules,
            defaults,
            batch_rows,
            check_attention(kernel, model.device, model.dtype),
            lambda: Tokenizer.load(folder),
            page_size=page_size,
            cache_tokens=cache_tokens,
            prefill_tokens=prefill_tokens,
            vision_patches=vision_patches,
            share_prefixes=share_prefixes,
            graphs=graphs,
        )

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yields one completion per request, as they finish. Requests are pulled from the iterable
        as sequences can be added.

        A request that can never be answered (malformed, longer than the context or the cache) gets
        a completion with an error. Raises ValueError for an id that is still unanswered. If the
        caller stops early, the unanswered requests are cancelled.
        """
        source = iter(requests)
        pending: set[str] = set()
        try:
            while True:
                # This also bounds the requests that fail at once.
                for request in islice(source, self._core.free_slots(self.batch_rows)):
                    self.add(request)
                    pending.add(request.id)
                if not pending:
                    return
                completions = self.step()
                # Other callers get theirs from the next step.
                others = [completion for completion in completions if completion.id not in pending]
                self._core.put_back_completions(others)
                self._unanswered.update(completion.id for completion in others)
                for completion in completions:
                    if completion.id in pending:
                        pending.remove(completion.id)
                        yield completion
        finally:
            for request_id in pending:
                self.cancel(request_id)
            self._core.take_completions(pending)
            self._unanswered -= pending

    @property
    def unfinished(self) -> int:
        """Number of requests whose completions have not been returned."""
        return len(self._unanswered)

    def add(self, request: Request) -> None:
        """Adds a request to the waiting queue. `step` returns its completion, also if it fails.

        Raises ValueError for the id of a request that is not answered yet.
        """
        if request.id in self._unanswered:
            raise ValueError(f"the request {request.id!r} is not answered yet; ids must differ")
        sequence = self._make_sequence(request)
        self._unanswered.add(request.id)
        if isinstance(sequence, str):
            self._core.refuse(failed(request, sequence))
        else:
            self._core.add(sequence)

    def step(self) -> list[Completion]:
        """Admits and prefills what fits, generates one token of each running sequence, and returns
        the completions that are ready.

        Running out of memory is not an error: fewer sequences run at once, and the work is done
        again; a request that runs out of memory alone gets a completion with an error. Any other
        exception leaves all requests as they were before the step: call `step` again, or `reset`.
        """
        with torch.inference_mode():
            self._core.step(self.batch_rows)
        completions = self._core.take_completions()
        self._unanswered -= {completion.id for completion in completions}
        return completions

    def cancel(self, request_id: str) -> bool:
        """Stops a request; returns whether it was unfinished. The next step then returns its
        completion, with finish_reason "cancelled" and the output so far.
        """
        with torch.inference_mode():
            return self._core.cancel(request_id)

    def drain(self) -> Iterator[Completion]:
        """Yields the completions of all requests that were added, as they finish."""
        while self.unfinished:
            yield from self.step()

    def reset(self) -> None:
        """Drops every request, without a completion."""
        with torch.inference_mode():
            self._core.clear()
        self._unanswered.clear()

    def stats(self) -> EngineStats:
        """Returns the current statistics."""
        return self._core.stats()

    def _make_sequence(self, request: Request) -> Sequence | str:
        """Returns the request as a sequence, or why it can never be answered."""
        config, ids = self.model.config, request.input_ids
        rule = request.sampling.rule(self.defaults, len(ids))
        problem = request_problem(request, config, self.rules) or self._rule_problem(request, rule)
        if problem:
            return problem
        try:
            positions, next_position, media_starts = place_media(ids, request.visuals, config)
        except ValueError as error:
            return str(error)
        context, tokenizer = config.text.context_length, self._constraints.tokenizer
        matcher = self._constraints.matcher(rule) if request.mode == "generate" else None
        sequence = Sequence(request, rule, context, tokenizer, positions, next_position, matcher)
        cache = self._core.cache
        if sequence.cache_tokens > cache.capacity:
            return (
                f"prompt and answer need room for {sequence.cache_tokens} tokens, and the cache "
                f"has {cache.capacity}"
            )
        sequence.media_starts = media_starts
        if self._share_prefixes:
            if request.media_names is None:
                media_ids = [self._tensor_ids.of(visual.patches) for visual in request.visuals]
            else:
                media_ids = [named_media_id(name) for name in request.media_names]
            media = list(zip(media_starts, media_ids, strict=True))
            sequence.block_hashes = block_hashes(sequence.prompt, media, cache.page_size)
        return sequence

    def _make_cache(self) -> Cache:
        text, dtype, device = self.model.config.text, self.model.dtype, self.model.device
        limits = self._limits
        tokens = self._cache_tokens or measured_cache_tokens(
            self.model,
            self.rules,
            self.attention,
            self.batch_rows,
            limits.prefill_tokens,
            limits.vision_patches,
        )
        # All ranks must admit the same sequences.
        tokens = self.model.collectives.all_reduce_min(tokens, device)
        if self._page_size is None:
            return ContiguousCache(text, tokens, PAGE_SIZE, dtype, device, self.attention)
        cache = PagedCache(text, tokens, self._page_size, dtype, device)
        if self._graphs and device.type == "cuda":
            self.model_runner.replay_graphs(cache, self.batch_rows)
        return cache

    def _rule_problem(self, request: Request, rule: GenerationRule) -> str | None:
        """Returns why the request's rule cannot be followed, or None."""
        if request.mode != "generate":
            return None
        if rule.max_new_tokens < 1:
            return (
                f"the prompt has {len(request.input_ids)} tokens, and generation_config.json "
                f"allows {self.defaults.max_length} together with the answer; expected fewer, or "
                "max_new_tokens"
            )
        return self._constraints.problem(rule)
