"""Admits waiting sequences to the next prefill, first come, first served.

A sequence at the front of the queue that does not fit yet blocks the queue, so that no large
request starves.
"""

from collections import abc, deque
from dataclasses import dataclass, field

from mediamill.model.engine_core.kv_budget import out_of_memory
from mediamill.model.engine_core.kv_cache import Cache
from mediamill.model.engine_core.sequence import Sequence

# Successful steps after which a limit that memory has set is doubled.
_SUCCESSES_TO_GROW = 8
# On a GPU, gathering cached pages pays if they hold 1 / _MIN_CACHED_PART of the prompt.
_MIN_CACHED_PART = 8


@dataclass(frozen=True)
class SchedulerLimits:
    """What one prefill may hold; its first sequence may exceed it.

    prefill_tokens: new tokens of prompts and continuations.
    vision_patches: patches of their media.
    """

    prefill_tokens: int
    vision_patches: int


@dataclass(frozen=True)
class SharedPrefix:
    """The sequences `start` to `stop` - 1 of a prefill begin with the same `tokens` tokens, which
    the first of them computes.
    """

    start: int
    stop: int
    tokens: int

    @property
    def followers(self) -> range:
        """Indices of the sequences that take the prefix from the first one."""
        return range(self.start + 1, self.stop)


@dataclass(frozen=True)
class ScheduledPrefill:
    """The work of one prefill. Each sequence has its allocation.

    continuations: for each sequence those that this prefill scores.
    shared_prefixes: by the index of their first sequence.
    """

    sequences: list[Sequence] = field(default_factory=list)
    continuations: list[abc.Sequence[abc.Sequence[int]]] = field(default_factory=list)
    shared_prefixes: dict[int, SharedPrefix] = field(default_factory=dict)

    @property
    def reused_tokens(self) -> int:
        """Prompt tokens that need no computation: cached, or shared within this prefill."""
        reused = [seq.reused for seq in self.sequences]
        for prefix in self.shared_prefixes.values():
            for i in prefix.followers:
                reused[i] = prefix.tokens
        return sum(reused)


class OomBackoff:
    """A limit of the sequences that run at once: halved when memory runs out, doubled after
    successes.
    """

    def __init__(self) -> None:
        self._limit: int | None = None
        self._successes = 0

    def limit(self, count: int) -> int:
        """Returns how many of `count` sequences may run at once."""
        return count if self._limit is None else min(count, self._limit)

    def halve(self, count: int) -> None:
        """Memory ran out with `count` sequences at once."""
        self._limit, self._successes = max(1, count // 2), 0

    def succeed(self, count: int) -> None:
        """A step with `count` sequences at once succeeded."""
        if self._limit is None or count < self._limit:
            return
        self._successes += 1
        if self._successes >= _SUCCESSES_TO_GROW:
            self._limit, self._successes = 2 * self._limit, 0


class Scheduler:
    """The waiting queue. waiting: its sequences, the next one first."""

    def __init__(self, limits: SchedulerLimits, share_prefixes: bool) -> None:
        """share_prefixes: use prefixes that others have computed, or compute in this prefill."""
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.backoff = OomBackoff()
        self._share_prefixes = share_prefixes

    def admit(self, cache: Cache, free_slots: int, running: bool) -> ScheduledPrefill:
        """Takes sequences for the next prefill from the front of the queue, at most `free_slots`,
        and allocates their part of the cache.

        running: other sequences hold cache that they will free. Raises the error of the system when
        memory for the first sequence is missing and nothing runs that could free some.
        """
        scheduled = ScheduledPrefill()
        sequences = scheduled.sequences
        page_size = cache.page_size
        new_hashes: set[bytes] = set()
        tokens = patches = 0
        while self.waiting and len(sequences) < self.backoff.limit(free_slots):
            seq = self.waiting[0]
            cached = self._cached_pages(seq, cache)
            reused = cached * page_size
            prefix = self._shared_prefix(scheduled, seq, reused)
            shared = 0
            if prefix is not None:
                # Cached pages would save less, and both have to continue from the same pages.
                shared = reused = prefix.tokens
                cached = sequences[prefix.start].reused // page_size
            work = len(seq.prompt) - reused
            continuations = seq.next_continuations(self.limits.prefill_tokens - work)
            work += sum(len(continuation) for continuation in continuations)
            if seq.request.skips_language:
                work = 0
            new_patches = seq.patches_from(shared)
            if sequences and (
                tokens + work > self.limits.prefill_tokens
                or patches + new_patches > self.limits.vision_patches
                or (prefix is None and self._gains_by_waiting(seq, cached, new_hashes, page_size))
            ):
                break
            try:
                allocation = cache.allocate(seq.cache_tokens, seq.block_hashes[:cached])
            except Exception as error:
                if not out_of_memory(error) or not (running or sequences):
                    raise
                allocation = None
            if allocation is None:
                break
            allocation.used = len(seq.prompt)
            seq.allocation = allocation
            if prefix is not None:
                scheduled.shared_prefixes[prefix.start] = prefix
            sequences.append(self.waiting.popleft())
            scheduled.continuations.append(continuations)
            new_hashes.update(seq.block_hashes if seq.cache_tokens else ())
            tokens += work
            patches += new_patches
        return scheduled

    def put_back(self, sequences: abc.Sequence[Sequence], cache: Cache) -> None:
        """Frees the cache of admitted sequences, and returns them to the front of the queue."""
        for seq in reversed(sequences):
            if seq.allocation is not None:
                cache.free(seq.allocation)
                seq.allocation = None
            self.waiting.appendleft(seq)

    def remove(self, request_id: str) -> Sequence | None:
        """Removes a sequence from the queue and returns it, or None if it is not there."""
        seq = next((seq for seq in self.waiting if seq.request.id == request_id), None)
        if seq is not None:
            self.waiting.remove(seq)
        return seq

    def _cached_pages(self, seq: Sequence, cache: Cache) -> int:
        """Returns how many pages at the beginning of the prompt are cached and worth using."""
        if not self._share_prefixes or seq.request.mode == "embed":
            return 0
        # The last token is always computed: its hidden state gives the next token.
        full_pages = (len(seq.prompt) - 1) // cache.page_size
        cached = cache.pool.count_cached(seq.block_hashes[:full_pages])
        tokens = cached * cache.page_size
        pays = cache.device.type == "cpu" or tokens * _MIN_CACHED_PART >= len(seq.prompt)
        return cached if pays else 0

    def _shared_prefix(
        self, scheduled: ScheduledPrefill, seq: Sequence, reused: int
    ) -> SharedPrefix | None:
        """Returns the prefix that this sequence shares with the last scheduled ones, or None where
        computing it once does not pay.

        reused: tokens that the sequence would have from cached pages instead.
        """
        sequences = scheduled.sequences
        if not (sequences and self._share_prefixes and seq.generates):
            return None
        last = next(reversed(scheduled.shared_prefixes.values()), None)
        if last and last.stop < len(sequences):
            last = None
        start = last.start if last else len(sequences) - 1
        first = sequences[start]
        if not first.generates:
            return None
        tokens = min(first.common_prefix(seq), last.tokens if last else len(first.prompt))
        if tokens * 2 < len(seq.prompt) or tokens <= max(reused, first.reused):
            return None
        return SharedPrefix(start, len(sequences) + 1, tokens)

    def _gains_by_waiting(
        self, seq: Sequence, cached: int, new_hashes: abc.Container[bytes], page_size: int
    ) -> bool:
        """Whether this prefill computes half of the sequence's prompt or more for others, so that
        the next prefill finds it cached.
        """
        if not self._share_prefixes or seq.request.mode == "embed":
            return False
        usable = seq.block_hashes[cached : (len(seq.prompt) - 1) // page_size]
        shared = next((i for i, h in enumerate(usable) if h not in new_hashes), len(usable))
        return shared * page_size * 2 >= len(seq.prompt)
