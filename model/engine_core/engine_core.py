"""The running engine: a queue, a cache, the rows that run, and one step after the other.

Turns rows into completions. What a step began and could not finish leaves no trace: its rows wait
again or stay as they were. It does not know how requests are checked or where they come from.
"""

import time
from collections.abc import Callable, Sequence

from mediamill.model.engine_core.kv_budget import out_of_memory, release_unused
from mediamill.model.engine_core.model_runner import Cache, ModelRunner
from mediamill.model.engine_core.running_batch import RunningBatch, chooser_for
from mediamill.model.engine_core.scheduler import OomBackoff, Scheduler, SchedulerLimits
from mediamill.model.engine_core.scoring import measure
from mediamill.model.engine_core.sequence import Row
from mediamill.model.engine_core.stats import EngineStats, Tally
from mediamill.model.generation.chooser import Choice
from mediamill.model.requests import Completion, failed

# Times that memory may run out with one row alone in hand; what else holds memory may change.
_TRIES = 2

Said = list[tuple[int, float, list[tuple[int, float]]]]


class EngineCore:
    """steps: the network's side. make_cache: called once, before the first row."""

    def __init__(
        self,
        steps: ModelRunner,
        make_cache: Callable[[], Cache],
        limits: SchedulerLimits,
        shares: bool,
    ) -> None:
        self.steps = steps
        self.cache: Cache | None = None
        self.scheduler = Scheduler(limits, shares)
        self.running = RunningBatch(steps)
        self.done: list[Completion] = []
        self._make_cache = make_cache
        self._tally = Tally()
        self._relief = OomBackoff()

    def open_cache(self) -> Cache:
        """The cache, made at first use."""
        if self.cache is None:
            self.cache = self._make_cache()
        return self.cache

    def step(self, most_rows: int) -> None:
        """Prefill what fits beside the running rows, then one token more for each of them.
        Completions are in `done`.
        """
        self._tally.steps += 1
        self._prefill(most_rows)
        self._decode()

    def cancel(self, request_id: str) -> bool:
        """Whether there was such a row; its completion is in `done` then."""
        row = self.scheduler.remove(request_id)
        if row is None:
            row = next((r for r in self.running.rows if r.request.id == request_id), None)
            if row is None:
                return False
            self._leave([row])
        self._tally.cancelled += 1
        self.done.append(row.completion(cancelled=True))
        return True

    def clear(self) -> None:
        """Forget every row, and what they have said."""
        self._close(self.running.rows)
        self.running.forget()
        self.running.rows = []
        self.scheduler.waiting.clear()
        self.steps.forget()
        self.done = []

    def refuse(self, completion: Completion) -> None:
        """Answer a request that never becomes a row."""
        self._tally.failed += 1
        self.done.append(completion)

    def stats(self) -> EngineStats:
        """All counts now."""
        cache = self.cache
        return EngineStats(
            **vars(self._tally),
            visual_tokens=self.steps.visual_tokens,
            vision_seconds=self.steps.vision_seconds,
            rows=len(self.running.rows),
            pages=cache.pages if cache else 0,
            pages_in_use=cache.pages_in_use if cache else 0,
            cache_tokens=cache.capacity if cache else 0,
        )

    def _prefill(self, most_rows: int) -> None:
        if not self.scheduler.waiting:
            return
        cache, running = self.open_cache(), self.running
        began = time.perf_counter()
        try:
            free = most_rows - len(running.rows)
            rows = self.scheduler.admit(cache, free, bool(running.rows))
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._short_of_memory(self.scheduler.relief, 1, error)
            self._give_up_on(self.scheduler.waiting[0])
            return
        assert rows or running.rows, "an empty cache has room for every row that was let in"
        if not rows:
            return
        try:
            prefilled = self.steps.prefill(rows, cache)
            starting = [i for i, row in enumerate(rows) if row.generates]
            said: Said = []
            if starting:
                last = [prefilled.places[i, None][-1] for i in starting]
                logits = self.steps.model.logits(prefilled.hidden[last])
                new = [rows[i] for i in starting]
                chooser = chooser_for(new, self.steps)
                choice = chooser.choose(logits, self.steps.allowed.of(new))
                said = _read(self.steps.agreed(choice))
            measured = measure(rows, prefilled, self.steps.model)
            for row in rows:
                if row.room is not None and row.room.tokens:
                    cache.publish(row.room, row.names)
        except Exception as error:
            self.scheduler.put_back(rows, cache)
            self.steps.forget()
            if not out_of_memory(error):
                raise
            self._short_of_memory(self.scheduler.relief, len(rows), error)
            if len(rows) == 1:
                self._give_up_on(rows[0])
            return
        self.scheduler.relief.succeed(len(rows))
        tally = self._tally
        tally.admitted += len(rows)
        tally.reused_tokens += sum(row.spared for row in rows)
        for row in rows:
            row.leader, row.head = None, 0
        tally.prompt_tokens += prefilled.prompt_tokens
        tally.rows_peak = max(tally.rows_peak, len(running.rows) + len(rows))
        tally.pages_peak = max(tally.pages_peak, cache.pages_in_use)
        self._close([row for row in rows if not row.generates])
        for row, scores, vector in measured:
            row.scores += scores
            row.embedding = vector
        # Of those that go on, the prompt is known now.
        self.scheduler.put_back([row for row, *_ in measured if not row.measured], cache)
        answers = [row.completion() for row, *_ in measured if row.measured]
        self.done += answers
        tally.finished += len(answers)
        if starting:
            self._guarded(lambda: running.join(new, chooser))
            self._take(new, said)
        tally.prefill_seconds += time.perf_counter() - began

    def _decode(self) -> None:
        running, cache = self.running, self.cache
        if not running.rows or cache is None:
            return
        began = time.perf_counter()
        size = self._relief.bound(len(running.rows))
        rows = list(running.rows)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            try:
                whole = len(part) == len(rows)
                said = _read(running.step(cache) if whole else running.part_step(part, cache))
            except Exception as error:
                running.forget()
                if not out_of_memory(error):
                    raise
                self._short_of_memory(self._relief, len(part), error)
                if len(part) == 1:
                    self._give_up_on(part[0])
                break
            self._relief.succeed(len(part))
            self._take(part, said)
        self._tally.decode_seconds += time.perf_counter() - began

    def _take(self, rows: Sequence[Row], said: Said) -> None:
        """Give each row its token; those that are finished leave."""
        for row, (token, logprob, top) in zip(rows, said, strict=True):
            row.append(token, logprob, top)
            row.tries = 0
        self._tally.generated_tokens += len(rows)
        finished = [row for row in rows if row.finished]
        self._leave(finished)
        self._tally.finished += len(finished)
        self.done += [row.completion() for row in finished]

    def _leave(self, rows: Sequence[Row]) -> None:
        self._close(rows)
        self._guarded(lambda: self.running.drop(rows))

    def _close(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.room is not None and self.cache is not None:
                self.cache.close(row.room)
            row.room = None

    def _guarded(self, change: Callable[[], None]) -> None:
        """Change the running rows; what fails for want of memory is built anew by the next step."""
        try:
            change()
        except Exception as error:
            self.running.forget()
            if not out_of_memory(error):
                raise

    def _short_of_memory(self, relief: OomBackoff, rows: int, error: Exception) -> None:
        if self.steps.model.collectives.size > 1:
            raise error  # the other ranks went on, or wait for this one: they are out of step
        self._tally.shortages += 1
        relief.halve(rows)
        # The frames of the traceback hold what the step had made.
        error.__traceback__ = None
        release_unused(self.steps.model.device)

    def _give_up_on(self, row: Row) -> None:
        """Memory ran out with this row alone in hand: the second time it is answered so."""
        row.tries += 1
        if row.tries < _TRIES:
            return
        if row.room is None:
            self.scheduler.waiting.remove(row)
        else:
            self._leave([row])
        sentence = (
            f"there is not enough memory for the request, with {len(row.prompt)} prompt tokens and "
            f"{row.patches} patches, even alone"
        )
        self.refuse(failed(row.request, sentence, out_of_memory=True))


def _read(choice: Choice) -> Said:
    """The chosen tokens on the host. The one place of a step that waits for the device."""
    tops: list[list[tuple[int, float]]] = [[] for _ in range(len(choice.tokens))]
    if choice.top_ids is not None and choice.top_logprobs is not None:
        pairs = zip(choice.top_ids.tolist(), choice.top_logprobs.tolist(), strict=True)
        tops = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    return list(zip(choice.tokens.tolist(), choice.logprobs.tolist(), tops, strict=True))
