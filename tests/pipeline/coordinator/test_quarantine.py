"""Only the rows that crash their process become poison: with simulated processes."""

import random
from dataclasses import replace

import pytest

from mediamill.pipeline.coordinator.quarantine import Admission, CrashLevel, Quarantine, WorkerId

POOL = "generate"


class Pool:
    """Actors that finish calls of rows as Ray does: a call whose process died is retried in the
    process that replaces it. kills: whether these rows in flight crash the process.
    """

    def __init__(self, quarantine, kills, actors=2, calls_at_once=2, seed=0):
        self.quarantine, self.kills = quarantine, kills
        self.draw = random.Random(seed)
        self.calls_at_once = calls_at_once
        self.workers = {
            f"actor-{number}": WorkerId(POOL, f"actor-{number}", f"{number}/0", "node")
            for number in range(actors)
        }
        for worker in self.workers.values():
            quarantine.enter(worker)
        self.deaths, self.poison, self.answers, self.lone_deaths = 0, [], [], []

    def run(self, calls):
        waiting = list(calls)
        while waiting:
            actor = self.draw.choice(list(self.workers))
            taken, waiting = waiting[: self.calls_at_once], waiting[self.calls_at_once :]
            while not self.work(actor, taken):
                self.restart(actor)

    def restart(self, actor):
        self.deaths += 1
        assert self.deaths < 1000, "a row is retried for ever"
        self.workers[actor] = replace(self.workers[actor], process=f"{actor}/{self.deaths}")
        self.quarantine.enter(self.workers[actor])

    def work(self, actor, calls):
        """Returns whether the process survived these calls."""
        worker = self.workers[actor]
        verdicts = [self.quarantine.begin(worker, rows) for rows in calls]
        together, isolated, done = [], [], []
        for rows, verdict in zip(calls, verdicts, strict=True):
            named = {place for group in verdict.isolated for place in group} | set(verdict.poison)
            together += [row for place, row in enumerate(rows) if place not in named]
            isolated += [[rows[place] for place in group] for group in verdict.isolated]
            done += [(rows[place], True) for place in verdict.poison]
        if self.kills(together):
            return False
        done += [(row, False) for row in together]
        self.settle(worker, done)
        for group in isolated:
            self.quarantine.begin_isolated(worker, group)
            if self.kills(group):
                self.lone_deaths += group if len(group) == 1 else []
                return False
            self.settle(worker, [(row, False) for row in group])
        return True

    def settle(self, worker, done):
        self.quarantine.done(worker, [row for row, _ in done])
        for row, poison in done:
            (self.poison if poison else self.answers).append(row)


def in_flight(quarantine):
    """The number of rows in flight and of suspects, without poison rows."""
    suspects = [level for level in quarantine._suspects.values() if level is not CrashLevel.POISON]
    return len(suspects) + sum(len(state.in_flight) for state in quarantine._workers.values())


def calls_of(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@pytest.mark.parametrize("size", [1, 3, 20, 64])
@pytest.mark.parametrize("bad", [0, 1, 4])
def test_only_the_rows_that_kill_become_poison_and_each_row_comes_out(size, bad):
    draw = random.Random(size * 10 + bad)
    rows = [(0, number) for number in range(300)]
    killers = set(draw.sample(rows, bad))
    quarantine = Quarantine(lambda _node: True)
    pool = Pool(quarantine, lambda work: bool(killers & set(work)))
    pool.run(calls_of(rows, size))
    assert set(pool.poison) == killers
    # A retried call brings rows that were answered already, and they are answered again.
    assert set(pool.answers) == set(rows) - killers
    assert in_flight(quarantine) == 0
    assert pool.deaths <= 4 * bad
    for row in killers:
        assert pool.lone_deaths.count(row) == 2


def test_kills_by_chance_make_no_poison_rows():
    """A process may crash in each turn, for reasons that have nothing to do with its rows."""
    deaths = 0
    for seed in range(20):
        chance = random.Random(seed)
        rows = [(0, number) for number in range(1000)]
        quarantine = Quarantine(lambda _node: True)
        pool = Pool(quarantine, lambda _work: chance.random() < 0.03, actors=3, seed=seed)  # noqa: B023
        pool.run(calls_of(rows, 4))
        deaths += pool.deaths
        assert not pool.poison
        assert set(pool.answers) | set(pool.poison) == set(rows)
        assert in_flight(quarantine) == 0
    assert deaths > 50


def test_the_crash_of_a_node_does_not_count():
    alive = {"a"}
    quarantine = Quarantine(lambda node: node in alive)
    rows = [(0, 1), (0, 2)]
    first = WorkerId(POOL, "x", "1", "b")
    quarantine.enter(first)
    assert quarantine.begin(first, rows) == Admission()
    quarantine.enter(replace(first, process="2", node="a"))
    assert quarantine.begin(replace(first, process="2", node="a"), rows) == Admission()
    quarantine.enter(replace(first, process="3", node="a"))  # on a node that is alive
    assert quarantine.begin(replace(first, process="3", node="a"), rows) == Admission(((0, 1),))


def test_rows_of_other_processes_and_pools_are_no_suspects():
    quarantine = Quarantine(lambda _node: True)
    generate, prepare = WorkerId(POOL, "x", "1", "a"), WorkerId("prepare", "y", "1", "a")
    for worker in (generate, prepare):
        quarantine.enter(worker)
        quarantine.begin(worker, [(0, 1), (0, 2)])
    quarantine.done(generate, [(0, 2)])
    again = replace(generate, process="2")
    quarantine.enter(again)
    assert quarantine.begin(again, [(0, 1), (0, 2), (0, 3)]).isolated == ((0,),)
    assert quarantine.begin(prepare, [(0, 1)]) == Admission()


def test_the_late_calls_of_a_dead_process_change_nothing():
    """Calls overtake one another on the way to the coordinator."""
    quarantine = Quarantine(lambda _node: True)
    old = WorkerId(POOL, "x", "1", "a")
    new = replace(old, process="2")
    quarantine.enter(old)
    quarantine.begin(old, [(0, 1)])
    quarantine.enter(new)
    quarantine.enter(new)
    assert quarantine.begin(old, [(0, 9)]) == Admission()
    quarantine.begin_isolated(old, [(0, 9)])
    assert quarantine.begin(new, [(0, 9), (0, 1)]) == Admission(((1,),))


def test_a_restarted_quarantine_goes_on_without_its_past():
    """The coordinator was restarted: rows are in flight from their next call on."""
    quarantine = Quarantine(lambda _node: True)
    worker = WorkerId(POOL, "x", "1", "a")
    quarantine.done(worker, [(0, 5)])
    assert quarantine.begin(worker, [(0, 1)]) == Admission()
    quarantine.enter(replace(worker, process="2"))
    assert quarantine.begin(replace(worker, process="2"), [(0, 1)]).isolated == ((0,),)


def test_a_late_report_does_not_make_the_next_rows_suspects_of_isolation():
    """`done` does not wait: the next call may begin before it arrives."""
    quarantine = Quarantine(lambda _node: True)
    worker = WorkerId(POOL, "x", "1", "a")
    quarantine.enter(worker)
    quarantine.begin(worker, [(0, 1)])
    second = replace(worker, process="2")
    quarantine.enter(second)
    assert quarantine.begin(second, [(0, 1)]).isolated == ((0,),)
    quarantine.begin_isolated(second, [(0, 1)])
    quarantine.begin(second, [(0, 2), (0, 3)])  # before the report that (0, 1) is done
    third = replace(worker, process="3")
    quarantine.enter(third)
    assert quarantine.begin(third, [(0, 2), (0, 3)]).isolated == ((0, 1),)
    assert CrashLevel.BATCH < CrashLevel.GROUP < CrashLevel.ALONE < CrashLevel.POISON
