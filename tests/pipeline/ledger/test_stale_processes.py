"""Drivers, ledger actors and write tasks go on after they were replaced, in thousands of schedules.

No row is ever twice among the visible files, none that was visible vanishes, and the last run has
all rows.
"""

import asyncio
import io
import itertools
from collections import Counter

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.ledger import ledger, log, recovery, snapshot
from mediamill.pipeline.ledger.ledger import TakenOverError
from mediamill.pipeline.storage import storage
from tests.pipeline.ledger import kill_points
from tests.pipeline.ledger.schedules import Schedule, Serial

SEEDS = 60
DRIVERS = 3
URL = "memory://mill/out"


class Reader:
    """Checks the visible files whenever there are new ones."""

    def __init__(self, memory):
        self._memory = memory
        self._files = {}

    def __call__(self):
        visible = {
            path
            for path in self._memory.store
            if path.endswith(".parquet") and ledger.HIDDEN not in path
        }
        assert visible >= set(self._files), "a file has vanished"
        if visible == set(self._files):
            return
        for path in visible - set(self._files):
            data = self._memory.store[path].getvalue()
            self._files[path] = pq.read_table(io.BytesIO(data))["id"].to_pylist()
        counts = Counter(itertools.chain(*self._files.values()))
        assert max(counts.values()) == 1, [key for key, count in counts.items() if count > 1]


class Actors:
    """The ledger actors of a run: the newest one, and those that it replaced and that go on."""

    def __init__(self, run, schedule):
        self._run, self._schedule = run, schedule
        self._ledgers, self._busy = [], set()
        self.doomed = False  # the newest one dies at its next step

    def replace(self):
        """Starts another actor, as Ray does when it considers one dead."""
        self._ledgers.append(None)

    def call(self, name, *arguments):
        """Returns the reply as Ray does: replies get lost, and calls are retried."""
        draw, number = self._schedule.draw, None
        while True:
            if not self._ledgers:
                self.replace()
            if number is None or draw.random() < 0.5:
                number = draw.randrange(len(self._ledgers)) if draw.random() < 0.2 else -1
                number %= len(self._ledgers)
            self._schedule.wait()
            if number in self._busy:  # one call after the other; another test has concurrent calls
                continue
            self._busy.add(number)
            try:
                if self._ledgers[number] is None:
                    self._ledgers[number] = ledger.Ledger(URL, self._run)
                method = getattr(self._ledgers[number], name)
                reply = asyncio.run(method(*arguments))
            except TakenOverError:
                if number == len(self._ledgers) - 1:
                    raise
                number = None  # Ray retries with the current actor
                continue
            finally:
                self._busy.discard(number)
            if draw.random() > 0.1:
                return reply

    def finished(self, rows):
        return self.call("finished", rows)

    def commit(self, commit):
        return self.call("commit", commit)

    def published(self, names):
        return self.call("published", names)


def drive(name, schedule, actors):
    """A run whose write tasks are processes of their own, and are retried when they die."""
    output = storage.resolve(URL)
    state = kill_points.begin(output, name)
    recovery.mark_unfinished(output)
    recovery.recover(output, state)
    left = np.flatnonzero(state.pending(0, 0, kill_points.ROWS)).tolist()

    def task(indices):
        return schedule.spawn(
            f"{name}-task", lambda: kill_points.write(output, name, indices, actors)
        )

    size = kill_points.TASK_ROWS
    blocks = [left[start : start + size] for start in range(0, len(left), size)]
    tasks = [(block, task(block)) for block in blocks]
    while tasks:
        schedule.wait()
        for number, (block, process) in enumerate(tasks):
            if process.error:
                raise process.error
            if process.over or schedule.draw.random() < 0.005:  # or considered dead
                tasks.pop(number)
                if process.dead or not process.over:
                    tasks.append((block, task(block)))
                break
    recovery.flush(output, state)
    if ledger.end(output, state, {}):
        recovery.mark_finished(output, "{}")


def play(seed, monkeypatch):
    """Runs one schedule. Returns the number of its steps."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    reader = Reader(memory)
    schedule = Schedule(seed, reader)
    actors, steps, started = [], 0, 0
    draw = schedule.draw

    def start():
        nonlocal started
        started += 1
        run = f"run-{started}"
        actors.append(Actors(run, schedule))
        schedule.spawn(run, lambda: drive(run, schedule, actors[-1]))

    def event():
        nonlocal steps
        steps += 1
        if draw.random() < 0.004:
            draw.choice(schedule.processes).dead = True
        if draw.random() < 0.01:
            draw.choice(actors).replace()
        if draw.random() < 0.01:
            draw.choice(schedule.processes).patience = draw.choice([1.0, 50.0])
        if started < DRIVERS and draw.random() < 0.006:
            start()

    with schedule.on_storage(monkeypatch):
        kill_points.earlier_run(storage.resolve(URL))
        start()
        schedule.run(event)
    for process in schedule.processes:
        if process.error and not isinstance(process.error, TakenOverError):
            raise process.error
    output = storage.resolve(URL)
    kill_points.run(output, "last")
    reader()
    kill_points.assert_finished(output, memory)
    return steps


@pytest.fixture
def in_steps(monkeypatch):
    monkeypatch.setattr(log, "ThreadPoolExecutor", Serial)
    monkeypatch.setattr(recovery, "ThreadPoolExecutor", Serial)
    monkeypatch.setattr(snapshot, "due", lambda state, since: since >= 3)


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_stale_processes_lose_and_double_nothing(first, monkeypatch, in_steps):
    steps = [play(seed, monkeypatch) for seed in range(first, first + 20)]
    assert max(steps) > 200


@pytest.mark.soak
def test_stale_processes_in_thousands_of_schedules(monkeypatch, in_steps):
    for seed in range(1000, 4000):
        play(seed, monkeypatch)
