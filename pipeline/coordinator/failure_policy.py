"""Turns what processes tell of failures into whether the run goes on.

Held by the run's desk. What a row was and why it failed is not known here, only how many did, by
code; what is in work is attempts.py's.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mediamill.pipeline.coordinator.quarantine import Ordinal, Quarantine, Verdict, Who
from mediamill.schemas.job import JobConfig

_LOADS = 2  # failures to load, one after the other, that end a run

PREPARE, GENERATE = "prepare", "generate"  # the pools


@dataclass(frozen=True)
class StopRules:
    """When a run ends early; see the job's keys of the same names.

    last_pool: whose rows count for the error rate.
    """

    max_engine_failures: int
    max_error_rate: float | None
    error_rate_rows: int
    last_pool: str = GENERATE

    @classmethod
    def of(cls, job: JobConfig) -> "StopRules":
        """What `job` says of it."""
        return cls(
            job.resources.max_engine_failures,
            job.limits.max_error_rate,
            job.limits.error_rate_rows,
        )


@dataclass(frozen=True)
class RunStatus:
    """What the driver is told. why: a sentence, if the run must stop; at_once: even what is in work
    is worth nothing.

    drains: whether processes are told to begin nothing more. engines: that broke so far.
    """

    why: str | None
    at_once: bool
    drains: bool
    engines: int


class FailurePolicy:
    """Knows which rows are in work, and how much has gone wrong in this run.

    Started anew it has forgotten: counts begin at 0, and a row under suspicion is a row again.
    """

    def __init__(self, rules: StopRules, is_alive: Callable[[str], bool]) -> None:
        self._rules = rules
        self._attempts = Quarantine(is_alive)
        self._answered = 0
        self._errors: Counter[str] = Counter()
        self._engines = self._loads = 0
        self._drains = self._at_once = False
        self._why: str | None = None

    def enter(self, who: Who) -> None:
        """A process has started."""
        self._attempts.enter(who)

    def loaded(self, who: Who) -> None:
        """It can work."""
        if who.pool == GENERATE:
            self._loads = 0

    def unloadable(self, who: Who, why: str) -> None:
        """It could not load what it needs."""
        self._loads += 1
        if self._loads >= _LOADS:
            what = "an engine" if who.pool == GENERATE else "a process that prepares rows"
            self._end(f"{what} could not be loaded {self._loads} times in a row: {why}")

    def begin(self, who: Who, rows: Sequence[Ordinal]) -> Verdict:
        """What is to become of rows that have come to a process."""
        if self._drains:
            return Verdict(stop=True)
        return self._attempts.begin(who, rows)

    def begin_apart(self, who: Who, rows: Sequence[Ordinal]) -> None:
        """Rows are in work, and no other row of this process is."""
        self._attempts.begin_apart(who, rows)

    def done(self, who: Who, rows: Sequence[Ordinal], errors: Mapping[str, int]) -> None:
        """Rows have left a process, so many of them as errors."""
        self._attempts.done(who, rows)
        if who.pool != self._rules.last_pool:
            return
        self._answered += len(rows)
        self._errors.update(errors)
        most = self._rules.max_error_rate
        if most is None or self._answered < self._rules.error_rate_rows:
            return
        found = self._errors.total()
        if found > most * self._answered:
            codes = ", ".join(f"{code} {number}" for code, number in self._errors.most_common())
            self._end(
                f"too many rows are errors: found {found} of {self._answered} in this run "
                f"({codes}), expected at most {100 * most:g} %; what is finished is kept: mend the "
                "cause, or raise limits.max_error_rate"
            )

    def broken(self, who: Who, why: str) -> None:
        """An engine cannot go on. Its process is about to end, and another one will take over."""
        self._engines += 1
        if self._engines > self._rules.max_engine_failures:
            self._end(
                f"engines broke {self._engines} times in this run, expected at most "
                f"{self._rules.max_engine_failures} (resources.max_engine_failures); the last "
                f"time: {why}"
            )

    def fatal(self, why: str) -> None:
        """No further answer can be trusted."""
        self._end(why)
        self._at_once = True

    def drain(self) -> None:
        """No further row is to be begun."""
        self._drains = True

    def word(self) -> RunStatus:
        """For the driver, which asks from time to time."""
        return RunStatus(self._why, self._at_once, self._drains, self._engines)

    def _end(self, why: str) -> None:
        """The run must stop. The first reason counts."""
        self._why = self._why or why
        self._drains = True
