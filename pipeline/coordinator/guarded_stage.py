"""Wraps a stage's call so that the death of its process costs no neighbours and never repeats.

Before rows are worked on the desk is told; it may say that some have to have the process for
themselves, that some are not to be touched, or that nothing is to be begun any more. What the stage
does is not known here, only that rows whose status is set pass by.
"""

import atexit
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from mediamill.pipeline.coordinator.quarantine import Ordinal, Verdict, Who
from mediamill.pipeline.faults import BrokenEngineError, FatalError
from mediamill.pipeline.records import ROW_FILE, ROW_INDEX
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode

_AGAIN_S = 1.0  # before a process that could not load leaves, to be started again
_TELL_S = 30.0  # for the desk to hear why a process leaves
_POISON = (
    "the row ended the processes that worked on it, the last two times while it was alone; "
    "the logs of Ray's workers may say why"
)


@dataclass(frozen=True)
class CoordinatorCalls:
    """The desk as a process of a pool sees it. actor: a handle of it."""

    actor: Any

    def who(self, pool: str) -> Who:
        """This process."""
        import ray

        context = ray.get_runtime_context()
        return Who(pool, str(context.get_actor_id()), uuid.uuid4().hex, context.get_node_id())

    def in_place_of_another(self) -> bool:
        """Whether this process stands where another one died."""
        import ray

        return bool(ray.get_runtime_context().was_current_actor_reconstructed)

    def enter(self, who: Who) -> None:
        import ray

        # Ray's own tidying at exit can wait for ever for a cluster that is gone.
        atexit.register(os._exit, 0)
        ray.get(self.actor.enter.remote(who))

    def begin(self, who: Who, rows: Sequence[Ordinal]) -> Verdict:
        import ray

        verdict: Verdict = ray.get(self.actor.begin.remote(who, rows))
        return verdict

    def begin_apart(self, who: Who, rows: Sequence[Ordinal]) -> None:
        import ray

        ray.get(self.actor.begin_apart.remote(who, rows))

    def done(self, who: Who, rows: Sequence[Ordinal], errors: Mapping[str, int]) -> None:
        """Does not wait."""
        self.actor.done.remote(who, rows, errors)

    def broken(self, who: Who, why: str) -> None:
        import ray

        ray.get(self.actor.broken.remote(who, why), timeout=_TELL_S)

    def unloadable(self, who: Who, why: str) -> None:
        import ray

        ray.get(self.actor.unloadable.remote(who, why), timeout=_TELL_S)

    def loaded(self, who: Who) -> None:
        self.actor.loaded.remote(who)

    def count(self, numbers: Mapping[str, int]) -> None:
        """Adds to its counters, and does not wait."""
        self.actor.add_all.remote(numbers)

    def fatal(self, why: str) -> None:
        import ray

        ray.get(self.actor.fatal.remote(why), timeout=_TELL_S)


class GuardedStage:
    """A stage in its process. pool: names the stage. options: of its constructor."""

    def __init__(
        self, stage: type, options: Mapping[str, Any], desk: CoordinatorCalls, pool: str
    ) -> None:
        self._desk, self._who = desk, desk.who(pool)
        self._room = _Room()
        self._leaving = threading.Lock()
        desk.enter(self._who)
        try:
            self._stage = stage(**options)
        except FatalError as error:
            desk.fatal(str(error))
            raise
        except Exception as error:
            self._cannot_load(error)
            raise
        desk.loaded(self._who)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The stage's answer; a table without rows when the run ends."""
        rows = _ordinals(table)
        with self._room.shared():
            verdict = self._desk.begin(self._who, rows)
            if verdict.stop:
                return self._stage(table.slice(0, 0))
            table = _as_errors(table, verdict.poison)
            if not verdict.apart:
                return self._work(table, rows)
            apart = {place for group in verdict.apart for place in group}
            rest = [place for place in range(len(rows)) if place not in apart]
            found = [self._work(_taken(table, rest), [rows[place] for place in rest])]
        for group in verdict.apart:
            with self._room.alone():
                chosen = [rows[place] for place in group]
                self._desk.begin_apart(self._who, chosen)
                found.append(self._work(_taken(table, group), chosen))
        places = [*rest, *(place for group in verdict.apart for place in group)]
        return _taken(pa.concat_tables(found), np.argsort(places).tolist())

    def _work(self, table: pa.Table, rows: Sequence[Ordinal]) -> pa.Table:
        try:
            found: pa.Table = self._stage(table)
        except BrokenEngineError as error:
            self.leave(error)
        except FatalError as error:
            self._desk.fatal(str(error))
            raise
        errors = Counter(code for code in found[c.ERROR_CODE].to_pylist() if code is not None)
        self._desk.done(self._who, rows, dict(errors))
        return found

    def leave(self, error: BrokenEngineError) -> NoReturn:
        """Ends the process: Ray starts another one in its place, and brings it the same rows."""
        # Calls of all threads fail together; one tells, and the others wait for the end.
        self._leaving.acquire()
        try:
            self._desk.broken(self._who, str(error))
        finally:
            os._exit(1)

    def _cannot_load(self, error: Exception) -> None:
        """An exception in the constructor of an actor that has been started again ends it for good,
        and the job with it. The end of its process does not.
        """
        self._desk.unloadable(self._who, f"{type(error).__name__}: {error}")
        if self._desk.in_place_of_another():
            time.sleep(_AGAIN_S)
            os._exit(1)


class _Room:
    """Lets calls work side by side, or one alone; who wants to be alone goes before the others."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = self._want_alone = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._want_alone)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._want_alone += 1
            self._changed.wait_for(lambda: not self._inside)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._want_alone -= 1
                self._changed.notify_all()


def _ordinals(table: pa.Table) -> list[Ordinal]:
    return [(row[ROW_FILE], row[ROW_INDEX]) for row in table[c.ROW].to_pylist()]


def _taken(table: pa.Table, places: Sequence[int]) -> pa.Table:
    return table.take(pa.array(places, pa.int64()))


def _as_errors(table: pa.Table, poison: Sequence[int]) -> pa.Table:
    """The table, with these rows as error rows, which every stage lets pass."""
    said = {c.STATUS: c.STATUS_ERROR, c.ERROR_CODE: ErrorCode.POISON.value}
    said[c.ERROR_MESSAGE] = _POISON
    for name, value in said.items() if poison else ():
        column = table[name].to_pylist()
        for place in poison:
            column[place] = value
        number = table.schema.get_field_index(name)
        table = table.set_column(number, table.schema.field(name), pa.array(column, pa.string()))
    return table
