"""Shows the log of a submitted job: on a terminal as the view of `mediamill run`, else as it is."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TextIO

from mediamill.jobs.cluster.job_log import Lines, event_of, is_of_ray, progress_in
from mediamill.jobs.interactive import end
from mediamill.jobs.progress.layout import Title
from mediamill.jobs.progress.reporter import MANIFEST, Reporter
from mediamill.jobs.progress.terminal import PlainReporter, TerminalReporter, is_dumb
from mediamill.schemas import progress as p
from mediamill.schemas.progress import Progress

_PHASES = (p.RAY, p.PROCESSES, p.MODEL, p.FIRST_ROWS, p.ROWS, p.FINISHING)


class LogClock:
    """A clock that follows the seconds of a job's driver, which its log tells."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._ahead_s = 0.0

    def __call__(self) -> float:
        """Returns seconds."""
        return self._clock() + self._ahead_s

    def set(self, seconds: float) -> None:
        """Sets the seconds since the driver began."""
        self._ahead_s = seconds - (self._clock() - self._began)


class LogView:
    """Passes the events of a driver's log to a reporter, and its text to `out`.

    clock: of the reporter.
    verbose: show Ray's own lines as well.
    """

    def __init__(
        self, reporter: Reporter, clock: LogClock, out: TextIO, verbose: bool = False
    ) -> None:
        self._reporter, self._clock, self._out, self._verbose = reporter, clock, out, verbose
        self._lines = Lines()
        self._last = Progress(0, 0, generates=False)
        self._step = ""
        self._has_begun = False
        reporter(Progress(0, 0, phase=p.RAY, waits_for="the cluster starts the job"))

    def write(self, text: str) -> None:
        """Takes a piece of the log."""
        for line in self._lines.add(text):
            self._take(line)

    def end(self) -> None:
        """Takes the last line, if it has no line break, and ends the view."""
        for line in self._lines.end():
            self._take(line)
        end(self._reporter)

    def tell(self, sentence: str) -> None:
        """Shows a sentence about the cluster."""
        self._reporter.notes([sentence])

    def _take(self, line: str) -> None:
        event = event_of(line)
        if event is not None:
            self._take_event(event)
        elif self._verbose or not is_of_ray(line):
            self._reporter.close()
            print(line, file=self._out, flush=True)

    def _take_event(self, event: Mapping[str, Any]) -> None:
        step = str(event.get("step", ""))
        if step != self._step or not self._has_begun:
            self._reporter.step(step)
            self._step, self._has_begun = step, True
        name = event["event"]
        progress = progress_in(event)
        if progress is not None:
            self._last = progress
            self._reporter(progress)
        elif name == "phase":
            self._begin(str(event.get("phase")), event.get("seconds"))
        elif name == "phase_ended":
            self._set_clock(event.get("seconds"), event.get("phase") == MANIFEST)
            facts = {key: value for key, value in event.items() if key in ("rows", "finished")}
            rows, finished = facts.get("rows", 0), facts.get("finished", 0)
            self._last = Progress(rows, finished, generates=False)
            self._reporter.end(facts)
        elif name == "note":
            self._reporter.notes([str(event.get("text"))])
        elif name == "stopping":
            grace_s = float(event.get("grace_s") or 0.0)
            sentence = "stopping: nothing had begun"
            if grace_s:
                sentence = (
                    "stopping, as it was asked: rows in flight are finished first, in at most "
                    f"{grace_s:g} s"
                )
            self._reporter.notes([sentence])

    def _begin(self, phase: str, seconds: object) -> None:
        self._set_clock(seconds, True)
        if phase == MANIFEST:
            self._reporter.begin(phase)
        elif phase in _PHASES:
            self._last = replace(self._last, phase=phase)
            self._reporter(self._last)

    def _set_clock(self, seconds: object, is_known: bool) -> None:
        if is_known and isinstance(seconds, int | float):
            self._clock.set(float(seconds))


def view_of(title: Title, stream: TextIO, out: TextIO, verbose: bool) -> LogView:
    """Returns the view of a log on a terminal."""
    clock = LogClock()
    reporter: Reporter = (
        PlainReporter(stream, clock)
        if is_dumb(stream)
        else TerminalReporter(stream, title, clock=clock)
    )
    return LogView(reporter, clock, out, verbose)
