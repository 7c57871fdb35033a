"""Runs a stage in a worker with crash isolation, and reports the worker's utilization.

Before a worker runs rows it asks the coordinator, which may tell it to run some of them isolated,
to skip poison rows, or, when the run drains, to begin none. Stages pass rows whose status is set.
"""

import atexit
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from mediamill.model.errors import ModelError
from mediamill.model.urls import safe_text
from mediamill.pipeline.coordinator.quarantine import Admission, Ordinal, WorkerId
from mediamill.pipeline.coordinator.telemetry import EngineReport
from mediamill.pipeline.coordinator.utilization import BUSY, UP, UtilizationMeter
from mediamill.pipeline.faults import BrokenEngineError, FatalError, root_cause
from mediamill.pipeline.records import ROW_FILE, ROW_INDEX
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, JobError
from mediamill.schemas.progress import ErrorExample

_ENDING_S = 60.0  # for the run to end the process, after an error that ends the run
_REPORT_TIMEOUT_S = 30.0  # for the coordinator to learn why a worker ends
_ENGINE_REPORT_S = 4.0  # between two reports of an engine's occupancy
_EXAMPLE_CHARACTERS = 300
_POISON = (
    "the row ended the processes that worked on it, the last two times while it was alone; "
    "the logs of Ray's workers may say why"
)


@dataclass(frozen=True)
class CoordinatorCalls:
    """The coordinator's methods that a worker calls. actor: the coordinator's handle."""

    actor: Any

    def worker_id(self, pool: str) -> WorkerId:
        """Returns the id of this process."""
        import ray

        context = ray.get_runtime_context()
        return WorkerId(pool, str(context.get_actor_id()), uuid.uuid4().hex, context.get_node_id())

    def enter(self, worker: WorkerId) -> None:
        # Ray's own cleanup at exit can wait endlessly for a cluster that is gone.
        atexit.register(os._exit, 0)
        _get(self.actor.enter.remote(worker))

    def begin(self, worker: WorkerId, rows: Sequence[Ordinal]) -> Admission:
        admission: Admission = _get(self.actor.begin.remote(worker, rows))
        return admission

    def begin_isolated(self, worker: WorkerId, rows: Sequence[Ordinal]) -> None:
        _get(self.actor.begin_isolated.remote(worker, rows))

    def done(self, worker: WorkerId, rows: Sequence[Ordinal], errors: Mapping[str, int]) -> None:
        """Does not wait."""
        self.actor.done.remote(worker, rows, errors)

    def engine_broken(self, reason: str) -> None:
        _get(self.actor.engine_broken.remote(reason), _REPORT_TIMEOUT_S)

    def load_failed(self, worker: WorkerId, error: str, is_jobs_fault: bool) -> float:
        reply = self.actor.load_failed.remote(worker, error, is_jobs_fault)
        pause_s: float = _get(reply, _REPORT_TIMEOUT_S)
        return pause_s

    def loaded(self, worker: WorkerId) -> None:
        self.actor.loaded.remote(worker)

    def count(self, numbers: Mapping[str, int]) -> None:
        """Adds to the coordinator's counters, and does not wait."""
        self.actor.add.remote(numbers)

    def put_engine(self, worker: WorkerId, report: EngineReport) -> None:
        """Does not wait."""
        self.actor.put_engine.remote(worker.actor, report)

    def add_examples(self, examples: Mapping[str, ErrorExample]) -> None:
        """Does not wait."""
        self.actor.add_examples.remote(examples)

    def fatal(self, reason: str) -> None:
        _get(self.actor.fatal.remote(reason), _REPORT_TIMEOUT_S)


class GuardedStage:
    """A stage in its worker process.

    stage, options: the class of the stage, and the keywords of its constructor.
    pool: its name. calls: concurrent calls that keep the worker fully busy.
    """

    def __init__(
        self,
        stage: type,
        options: Mapping[str, Any],
        coordinator: CoordinatorCalls,
        pool: str,
        calls: int = 1,
    ) -> None:
        self._coordinator, self._worker = coordinator, coordinator.worker_id(pool)
        self._lock, self._exiting = _SharedLock(), threading.Lock()
        coordinator.enter(self._worker)
        try:
            self._stage = stage(**options)
        except FatalError as error:
            coordinator.fatal(str(error))
            self._end(_ENDING_S)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - reported, and ends the process
            text, is_jobs_fault = root_cause(error), isinstance(error, JobError | ModelError)
            self._end(coordinator.load_failed(self._worker, text, is_jobs_fault))
        coordinator.loaded(self._worker)
        self._codes: set[str] = set()  # of which this process has sent an example
        # What a stage may offer: times since the last call, by counter; its engine's occupancy.
        take_times: Callable[[], Mapping[str, int]] = getattr(self._stage, "take_times", dict)

        def report(busy: int, up: int) -> None:
            coordinator.count({pool + BUSY: busy, pool + UP: up, **take_times()})

        self._meter = UtilizationMeter(calls, report)
        if (engine := getattr(self._stage, "engine_report", None)) is not None:
            threading.Thread(
                target=self._report_engine, args=(engine,), daemon=True, name="engine report"
            ).start()

    def _report_engine(self, report: Callable[[], EngineReport]) -> None:
        while True:
            self._coordinator.put_engine(self._worker, report())
            time.sleep(_ENGINE_REPORT_S)

    def _end(self, pause_s: float) -> NoReturn:
        """Ends the process; Ray starts another one, unless the run has ended by then.

        To raise would have Ray give up the actor, and print the whole traceback for each task that
        waits for it.
        """
        time.sleep(pause_s)
        os._exit(1)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the stage's table; one without rows when the run drains."""
        with self._meter.working():
            return self._run(table)

    def _run(self, table: pa.Table) -> pa.Table:
        rows = _ordinals(table)
        with self._lock.hold(exclusive=False):
            admission = self._coordinator.begin(self._worker, rows)
            if admission.stop:
                return self._stage(table.slice(0, 0))
            table = _with_poison(table, admission.poison)
            if not admission.isolated:
                return self._work(table, rows)
            isolated = [index for group in admission.isolated for index in group]
            shared = sorted(set(range(len(rows))) - set(isolated))
            results = [self._work(_take(table, shared), [rows[index] for index in shared])]
        for group in admission.isolated:
            with self._lock.hold(exclusive=True):
                suspects = [rows[index] for index in group]
                self._coordinator.begin_isolated(self._worker, suspects)
                results.append(self._work(_take(table, group), suspects))
        return _take(pa.concat_tables(results), np.argsort([*shared, *isolated]).tolist())

    def _work(self, table: pa.Table, rows: Sequence[Ordinal]) -> pa.Table:
        try:
            result: pa.Table = self._stage(table)
        except BrokenEngineError as error:
            self.exit(error)
        except FatalError as error:
            self._coordinator.fatal(str(error))
            raise
        errors = Counter(code for code in result[c.ERROR_CODE].to_pylist() if code is not None)
        self._coordinator.done(self._worker, rows, dict(errors))
        if new := errors.keys() - self._codes:
            self._codes |= new
            self._coordinator.add_examples(_examples(result, new))
        return result

    def exit(self, error: BrokenEngineError) -> NoReturn:
        """Ends the process: Ray starts another one, and retries the same rows there."""
        # Calls in all threads fail together; the first one reports, the others wait for the end.
        self._exiting.acquire()
        try:
            self._coordinator.engine_broken(str(error))
        finally:
            os._exit(1)


def _get(reply: Any, timeout_s: float | None = None) -> Any:
    import ray

    return ray.get(reply, timeout=timeout_s)


class _SharedLock:
    """A lock with a shared and an exclusive mode. Waiting exclusive holders go first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders = self._exclusive = 0

    @contextmanager
    def hold(self, exclusive: bool) -> Iterator[None]:
        with self._changed:
            self._exclusive += exclusive
            self._changed.wait_for(lambda: not (self._holders if exclusive else self._exclusive))
            self._holders += 1
        try:
            yield
        finally:
            with self._changed:
                self._holders -= 1
                self._exclusive -= exclusive
                self._changed.notify_all()


def _examples(table: pa.Table, codes: Set[str]) -> dict[str, ErrorExample]:
    """Returns the first error row of each code."""
    examples: dict[str, ErrorExample] = {}
    for index, code in enumerate(table[c.ERROR_CODE].to_pylist()):
        if code in codes and code not in examples:
            row, message = table[c.ID][index].as_py(), table[c.ERROR_MESSAGE][index].as_py()
            text = safe_text(str(message or ""))[:_EXAMPLE_CHARACTERS]
            examples[code] = ErrorExample(safe_text(str(row))[:_EXAMPLE_CHARACTERS], text)
    return examples


def _ordinals(table: pa.Table) -> list[Ordinal]:
    return [(row[ROW_FILE], row[ROW_INDEX]) for row in table[c.ROW].to_pylist()]


def _take(table: pa.Table, indices: Sequence[int]) -> pa.Table:
    return table.take(pa.array(indices, pa.int64()))


def _with_poison(table: pa.Table, poison: Sequence[int]) -> pa.Table:
    """Returns the table with these rows as error rows, which every stage passes through."""
    values = (c.STATUS_ERROR, ErrorCode.POISON.value, _POISON)
    names = (c.STATUS, c.ERROR_CODE, c.ERROR_MESSAGE)
    for name, value in zip(names, values, strict=True) if poison else ():
        column = table[name].to_pylist()
        for index in poison:
            column[index] = value
        number = table.schema.get_field_index(name)
        table = table.set_column(number, table.schema.field(name), pa.array(column, pa.string()))
    return table
