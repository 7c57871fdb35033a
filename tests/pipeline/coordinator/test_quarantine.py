"""What a death means for the rows that were at work: found again by following simulated processes,
with the real bookkeeping.
"""

import random
from dataclasses import replace

import pytest

from mediamill.pipeline.coordinator.quarantine import Quarantine, Suspicion, Verdict, Who

POOL = "generate"


class Pool:
    """Actors that bring calls of rows to an end, as Ray does: a call whose process died comes
    again, to the process that stands in its place. kills(rows in work) -> whether they do.
    """

    def __init__(self, attempts, kills, actors=2, calls_at_once=2, seed=0):
        self.attempts, self.kills = attempts, kills
        self.draw = random.Random(seed)
        self.calls_at_once = calls_at_once
        self.who = {
            f"actor-{number}": Who(POOL, f"actor-{number}", f"{number}/0", "node")
            for number in range(actors)
        }
        for who in self.who.values():
            attempts.enter(who)
        self.deaths, self.poison, self.answers, self.lone_deaths = 0, [], [], []

    def run(self, calls):
        waiting = list(calls)
        while waiting:
            actor = self.draw.choice(list(self.who))
            taken, waiting = waiting[: self.calls_at_once], waiting[self.calls_at_once :]
            while not self.work(actor, taken):
                self.restart(actor)

    def restart(self, actor):
        self.deaths += 1
        assert self.deaths < 1000, "a row goes round and round"
        self.who[actor] = replace(self.who[actor], process=f"{actor}/{self.deaths}")
        self.attempts.enter(self.who[actor])

    def work(self, actor, calls):
        """Whether the process lived to see the end of these calls."""
        who = self.who[actor]
        verdicts = [self.attempts.begin(who, rows) for rows in calls]
        together, apart, done = [], [], []
        for rows, verdict in zip(calls, verdicts, strict=True):
            named = {place for group in verdict.apart for place in group} | set(verdict.poison)
            together += [row for place, row in enumerate(rows) if place not in named]
            apart += [[rows[place] for place in group] for group in verdict.apart]
            done += [(rows[place], True) for place in verdict.poison]
        if self.kills(together):
            return False
        done += [(row, False) for row in together]
        self.settle(who, done)
        for group in apart:
            self.attempts.begin_apart(who, group)
            if self.kills(group):
                self.lone_deaths += group if len(group) == 1 else []
                return False
            self.settle(who, [(row, False) for row in group])
        return True

    def settle(self, who, done):
        self.attempts.done(who, [row for row, _ in done])
        for row, poison in done:
            (self.poison if poison else self.answers).append(row)


def calls_of(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@pytest.mark.parametrize("size", [1, 3, 20, 64])
@pytest.mark.parametrize("bad", [0, 1, 4])
def test_only_the_rows_that_kill_become_poison_and_each_row_comes_out(size, bad):
    draw = random.Random(size * 10 + bad)
    rows = [(0, number) for number in range(300)]
    killers = set(draw.sample(rows, bad))
    attempts = Quarantine(lambda _node: True)
    pool = Pool(attempts, lambda work: bool(killers & set(work)))
    pool.run(calls_of(rows, size))
    assert set(pool.poison) == killers
    # A call that comes again brings rows that have been answered already, and they are again.
    assert set(pool.answers) == set(rows) - killers
    assert attempts.in_work == 0
    assert pool.deaths <= 4 * bad
    for row in killers:
        assert pool.lone_deaths.count(row) == 2


def test_kills_by_chance_make_no_poison_rows():
    """Each turn of a process may be its last, for no reason of its rows."""
    deaths = 0
    for seed in range(20):
        chance = random.Random(seed)
        rows = [(0, number) for number in range(1000)]
        attempts = Quarantine(lambda _node: True)
        pool = Pool(attempts, lambda _work: chance.random() < 0.03, actors=3, seed=seed)  # noqa: B023
        pool.run(calls_of(rows, 4))
        deaths += pool.deaths
        assert not pool.poison
        assert set(pool.answers) | set(pool.poison) == set(rows)
        assert attempts.in_work == 0
    assert deaths > 50


def test_what_a_node_takes_along_does_not_count():
    alive = {"a"}
    attempts = Quarantine(lambda node: node in alive)
    rows = [(0, 1), (0, 2)]
    first = Who(POOL, "x", "1", "b")
    attempts.enter(first)
    assert attempts.begin(first, rows) == Verdict()
    attempts.enter(replace(first, process="2", node="a"))
    assert attempts.begin(replace(first, process="2", node="a"), rows) == Verdict()
    attempts.enter(replace(first, process="3", node="a"))  # on a node that lives
    assert attempts.begin(replace(first, process="3", node="a"), rows) == Verdict(((0, 1),))


def test_rows_of_other_processes_and_pools_are_no_suspects():
    attempts = Quarantine(lambda _node: True)
    one, other = Who(POOL, "x", "1", "a"), Who("prepare", "y", "1", "a")
    for who in (one, other):
        attempts.enter(who)
        attempts.begin(who, [(0, 1), (0, 2)])
    attempts.done(one, [(0, 2)])
    again = replace(one, process="2")
    attempts.enter(again)
    assert attempts.begin(again, [(0, 1), (0, 2), (0, 3)]).apart == ((0,),)
    assert attempts.begin(other, [(0, 1)]) == Verdict()


def test_what_a_dead_process_said_last_changes_nothing():
    """Words overtake one another on the way to the desk."""
    attempts = Quarantine(lambda _node: True)
    old = Who(POOL, "x", "1", "a")
    new = replace(old, process="2")
    attempts.enter(old)
    attempts.begin(old, [(0, 1)])
    attempts.enter(new)
    attempts.enter(new)
    assert attempts.begin(old, [(0, 9)]) == Verdict()
    attempts.begin_apart(old, [(0, 9)])
    assert attempts.begin(new, [(0, 9), (0, 1)]) == Verdict(((1,),))


def test_who_counts_may_have_forgotten_everything():
    """The desk was started anew: what comes is in work from then on."""
    attempts = Quarantine(lambda _node: True)
    who = Who(POOL, "x", "1", "a")
    attempts.done(who, [(0, 5)])
    assert attempts.begin(who, [(0, 1)]) == Verdict()
    attempts.enter(replace(who, process="2"))
    assert attempts.begin(replace(who, process="2"), [(0, 1)]).apart == ((0,),)


def test_a_word_that_is_late_does_not_accuse_the_next_rows():
    """`done` does not wait: the next call may begin before it is heard."""
    attempts = Quarantine(lambda _node: True)
    who = Who(POOL, "x", "1", "a")
    attempts.enter(who)
    attempts.begin(who, [(0, 1)])
    second = replace(who, process="2")
    attempts.enter(second)
    assert attempts.begin(second, [(0, 1)]).apart == ((0,),)
    attempts.begin_apart(second, [(0, 1)])
    attempts.begin(second, [(0, 2), (0, 3)])  # before the word that (0, 1) is done
    third = replace(who, process="3")
    attempts.enter(third)
    assert attempts.begin(third, [(0, 2), (0, 3)]).apart == ((0, 1),)
    assert Suspicion.COMPANY < Suspicion.GROUP < Suspicion.ALONE < Suspicion.POISON
