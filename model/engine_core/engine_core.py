"""The engine's loop: each step admits and prefills waiting sequences, then decodes running ones.

A step that fails leaves no trace: its sequences wait again, or stay as they were.
"""

import time
from collections import abc
from dataclasses import replace

from mediamill.model.engine_core.kv_budget import out_of_memory, release_unused
from mediamill.model.engine_core.kv_cache import Cache
from mediamill.model.engine_core.model_runner import ModelRunner
from mediamill.model.engine_core.running_batch import RunningBatch, chooser_for
from mediamill.model.engine_core.scheduler import OomBackoff, Scheduler, SchedulerLimits
from mediamill.model.engine_core.scoring import score_and_pool
from mediamill.model.engine_core.sequence import Sequence
from mediamill.model.engine_core.stats import EngineStats
from mediamill.model.generation.chooser import Choice
from mediamill.model.requests import Completion, failed

# A sequence fails when memory runs out so often in steps that hold it alone. Not the first time:
# other users of the memory may free some.
_MAX_OOM = 2

# For each sequence: its token, the token's logprob, and the likeliest tokens with theirs.
Sampled = list[tuple[int, float, list[tuple[int, float]]]]


class EngineCore:
    """Runs sequences from the waiting queue to their completions."""

    def __init__(
        self,
        model_runner: ModelRunner,
        make_cache: abc.Callable[[], Cache],
        limits: SchedulerLimits,
        share_prefixes: bool,
    ) -> None:
        """make_cache: called once, before the first sequence."""
        self.model_runner = model_runner
        self.running = RunningBatch(model_runner)
        self._scheduler = Scheduler(limits, share_prefixes)
        self._cache: Cache | None = None
        self._make_cache = make_cache
        self._completions: list[Completion] = []
        self._counters = EngineStats()
        self._decode_backoff = OomBackoff()

    @property
    def cache(self) -> Cache:
        """The KV cache, made at first use."""
        if self._cache is None:
            self._cache = self._make_cache()
        return self._cache

    def add(self, sequence: Sequence) -> None:
        """Appends a sequence to the waiting queue."""
        self._scheduler.waiting.append(sequence)

    def refuse(self, completion: Completion) -> None:
        """Adds the completion of a request that failed."""
        self._counters.failed += 1
        self._completions.append(completion)

    def free_slots(self, batch_size: int) -> int:
        """Returns how many sequences to add so that a batch of `batch_size` is full, or one waits
        if it is full already.
        """
        free = max(1, batch_size - len(self.running.sequences))
        return max(0, free - len(self._scheduler.waiting))

    def step(self, batch_size: int) -> None:
        """Prefills what fits beside the running sequences, then decodes one token of each."""
        self._counters.steps += 1
        self._prefill(batch_size)
        self._decode()

    def take_completions(self, ids: abc.Container[str] | None = None) -> list[Completion]:
        """Removes and returns the completions that are ready: those of `ids`, or all."""
        ready = self._completions
        self._completions = [] if ids is None else [c for c in ready if c.id not in ids]
        return ready if ids is None else [c for c in ready if c.id in ids]

    def put_back_completions(self, completions: list[Completion]) -> None:
        """Returns completions that were taken, for a later `take_completions`."""
        self._completions += completions

    def cancel(self, request_id: str) -> bool:
        """Stops a sequence and completes it; returns False if there is no such sequence."""
        seq = self._scheduler.remove(request_id)
        if seq is None:
            seq = next((s for s in self.running.sequences if s.request.id == request_id), None)
            if seq is None:
                return False
            self._stop([seq])
        self._counters.cancelled += 1
        self._completions.append(seq.completion(cancelled=True))
        return True

    def clear(self) -> None:
        """Drops every sequence and every completion."""
        self._free(self.running.sequences)
        self.running.clear()
        self._scheduler.waiting.clear()
        self.model_runner.clear_encoder_cache()
        self._completions = []

    def stats(self) -> EngineStats:
        """Returns the current statistics."""
        cache = self._cache
        return replace(
            self._counters,
            visual_tokens=self.model_runner.visual_tokens,
            vision_seconds=self.model_runner.vision_seconds,
            rows=len(self.running.sequences),
            pages=cache.pages if cache else 0,
            pages_in_use=cache.pages_in_use if cache else 0,
            cache_tokens=cache.capacity if cache else 0,
        )

    def _prefill(self, batch_size: int) -> None:
        scheduler, running, runner = self._scheduler, self.running, self.model_runner
        if not scheduler.waiting:
            return
        cache, start = self.cache, time.perf_counter()
        try:
            free = batch_size - len(running.sequences)
            scheduled = scheduler.admit(cache, free, bool(running.sequences))
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._recover_from_oom(scheduler.backoff, 1, error)
            self._count_oom(scheduler.waiting[0])
            return
        sequences = scheduled.sequences
        assert sequences or running.sequences, "an empty cache has space for every added sequence"
        if not sequences:
            return
        try:
            output = runner.prefill(scheduled, cache)
            generating = [i for i, seq in enumerate(sequences) if seq.generates]
            sampled: Sampled = []
            if generating:
                last = [output.rows[i, None][-1] for i in generating]
                logits = runner.model.logits(output.hidden[last])
                started = [sequences[i] for i in generating]
                chooser = chooser_for(started, runner)
                choice = chooser.choose(logits, runner.token_bitmask.of(started))
                sampled = _read(runner.broadcast(choice))
            results = score_and_pool(scheduled, output, runner.model)
            for seq in sequences:
                if seq.allocation is not None and seq.allocation.tokens:
                    cache.publish(seq.allocation, seq.block_hashes)
        except Exception as error:
            scheduler.put_back(sequences, cache)
            runner.clear_encoder_cache()
            if not out_of_memory(error):
                raise
            self._recover_from_oom(scheduler.backoff, len(sequences), error)
            if len(sequences) == 1:
                self._count_oom(sequences[0])
            return
        scheduler.backoff.succeed(len(sequences))
        counters = self._counters
        counters.admitted += len(sequences)
        counters.reused_tokens += scheduled.reused_tokens
        counters.prompt_tokens += output.prompt_tokens
        counters.rows_peak = max(counters.rows_peak, len(running.sequences) + len(sequences))
        counters.pages_peak = max(counters.pages_peak, cache.pages_in_use)
        self._free([seq for seq in sequences if not seq.generates])
        done: list[Sequence] = []
        unfinished: list[Sequence] = []
        for i, scores, embedding in results:
            seq = sequences[i]
            seq.scores += scores
            seq.embedding = embedding
            (done if seq.all_scored else unfinished).append(seq)
        # Their prompts are cached now.
        scheduler.put_back(unfinished, cache)
        self._complete(done)
        if generating:
            self._update_batch(lambda: running.join(started, chooser))
            self._append(started, sampled)
        counters.prefill_seconds += time.perf_counter() - start

    def _decode(self) -> None:
        running, cache = self.running, self._cache
        if not running.sequences or cache is None:
            return
        began = time.perf_counter()
        sequences = list(running.sequences)
        size = self._decode_backoff.limit(len(sequences))
        for start in range(0, len(sequences), size):
            part = sequences[start : start + size]
            try:
                is_whole = len(part) == len(sequences)
                sampled = _read(running.step(cache) if is_whole else running.step_part(part, cache))
            except Exception as error:
                running.invalidate()
                if not out_of_memory(error):
                    raise
                self._recover_from_oom(self._decode_backoff, len(part), error)
                if len(part) == 1:
                    self._count_oom(part[0])
                break
            self._decode_backoff.succeed(len(part))
            self._append(part, sampled)
        self._counters.decode_seconds += time.perf_counter() - began

    def _append(self, sequences: abc.Sequence[Sequence], sampled: Sampled) -> None:
        """Appends a token to each sequence, and completes those that are finished."""
        for seq, (token, logprob, top) in zip(sequences, sampled, strict=True):
            seq.append(token, logprob, top)
            seq.oom_count = 0
        self._counters.generated_tokens += len(sequences)
        finished = [seq for seq in sequences if seq.finished]
        self._stop(finished)
        self._complete(finished)

    def _complete(self, sequences: abc.Sequence[Sequence]) -> None:
        self._counters.finished += len(sequences)
        self._completions += [seq.completion() for seq in sequences]

    def _stop(self, sequences: abc.Sequence[Sequence]) -> None:
        """Removes sequences from the running batch, and frees their cache."""
        self._free(sequences)
        self._update_batch(lambda: self.running.remove(sequences))

    def _free(self, sequences: abc.Sequence[Sequence]) -> None:
        for seq in sequences:
            if seq.allocation is not None and self._cache is not None:
                self._cache.free(seq.allocation)
            seq.allocation = None

    def _update_batch(self, update: abc.Callable[[], None]) -> None:
        """Changes the running batch; if memory runs out, the next step builds its tensors again."""
        try:
            update()
        except Exception as error:
            self.running.invalidate()
            if not out_of_memory(error):
                raise

    def _recover_from_oom(self, backoff: OomBackoff, count: int, error: Exception) -> None:
        """Frees memory and lowers the limit after memory ran out with `count` sequences at once."""
        if self.model_runner.model.collectives.size > 1:
            raise error  # the other ranks went on, or wait for this one: they are out of step
        self._counters.shortages += 1
        backoff.halve(count)
        # The frames of the traceback hold the tensors of the step.
        error.__traceback__ = None
        release_unused(self.model_runner.model.device)

    def _count_oom(self, seq: Sequence) -> None:
        """Counts that memory ran out with this sequence alone, and fails it the second time."""
        seq.oom_count += 1
        if seq.oom_count < _MAX_OOM:
            return
        if seq.allocation is None:
            self._scheduler.waiting.remove(seq)
        else:
            self._stop([seq])
        message = (
            f"there is not enough memory for the request, with {len(seq.prompt)} prompt tokens and "
            f"{seq.patches} patches, even alone"
        )
        self.refuse(failed(seq.request, message, out_of_memory=True))


def _read(choice: Choice) -> Sampled:
    """Returns the chosen tokens on the host. The only device synchronization of a step."""
    tops: list[list[tuple[int, float]]] = [[] for _ in range(len(choice.tokens))]
    if choice.top_ids is not None and choice.top_logprobs is not None:
        pairs = zip(choice.top_ids.tolist(), choice.top_logprobs.tolist(), strict=True)
        tops = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    return list(zip(choice.tokens.tolist(), choice.logprobs.tolist(), tops, strict=True))
