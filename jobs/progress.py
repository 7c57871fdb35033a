"""Turns Progress into what stderr shows: one rewritten line on a terminal, JSON lines elsewhere.

Knows nothing of jobs; it neither counts nor guesses, it only shows.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol, TextIO

from mediamill.schemas.result import Progress

_BAR_LONGEST = 24
_BAR_SHORTEST = 6
_CHATTY = {
    "ray.data.dataset": logging.WARNING,
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # warns that its own bars are off
}


class Reporter(Protocol):
    """Called with each Progress; `close` shows the last one, if it was held back.

    stopping: the run has been told to end, and may take so many seconds. phase: what comes now is
    of another step of the job.
    """

    def __call__(self, progress: Progress) -> None: ...

    def stopping(self, grace_s: float) -> None: ...

    def phase(self, name: str) -> None: ...

    def close(self) -> None: ...


def reporter_for(stream: TextIO) -> Reporter:
    """The reporter that suits a stream: a terminal's or a log's."""
    return TerminalReporter(stream) if stream.isatty() else JsonReporter(stream)


class TerminalReporter:
    """Rewrites one line at most every `every_s` seconds; `close` ends the line."""

    def __init__(
        self,
        stream: TextIO,
        every_s: float = 0.2,
        columns: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._columns = columns
        self._pace = _Pace(every_s, clock)
        self._phase = ""

    def __call__(self, progress: Progress) -> None:
        if self._pace.is_due(progress):
            self._show(progress)

    def stopping(self, grace_s: float) -> None:
        self._stream.write(
            f"\r\x1b[Kstopping: what has begun is finished first, in at most {grace_s:g} s; "
            "once more to stop at once\n"
        )
        self._stream.flush()

    def phase(self, name: str) -> None:
        self.close()
        self._pace.begin()
        self._phase = f"{name}: "

    def close(self) -> None:
        if self._pace.held is not None:
            self._show(self._pace.held)
        if self._pace.has_shown:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, progress: Progress) -> None:
        columns = self._columns or shutil.get_terminal_size().columns
        # Back to the start, text, erase the rest: in one write, so that nothing flickers.
        line = progress_line(progress, columns - 1 - len(self._phase))
        self._stream.write(f"\r{self._phase}{line}\x1b[K")
        self._stream.flush()


class JsonReporter:
    """Writes one JSON object a line at most every `every_s` seconds: {"event": "progress", ...}."""

    def __init__(
        self,
        stream: TextIO,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._pace = _Pace(every_s, clock)
        self._phase: dict[str, str] = {}

    def __call__(self, progress: Progress) -> None:
        if self._pace.is_due(progress):
            self._show(progress)

    def stopping(self, grace_s: float) -> None:
        self._stream.write(json.dumps({"event": "stopping", "grace_s": grace_s}) + "\n")
        self._stream.flush()

    def phase(self, name: str) -> None:
        self.close()
        self._pace.begin()
        self._phase = {"phase": name}

    def close(self) -> None:
        if self._pace.held is not None:
            self._show(self._pace.held)

    def _show(self, progress: Progress) -> None:
        said = {"event": "progress", **self._phase, **asdict(progress)}
        self._stream.write(json.dumps(said) + "\n")
        self._stream.flush()


class _Pace:
    """Lets one Progress through every so often and holds back the latest of the others."""

    def __init__(self, every_s: float, clock: Callable[[], float]) -> None:
        self._every_s = every_s
        self._clock = clock
        self._next = float("-inf")
        self.held: Progress | None = None
        self.has_shown = False

    def begin(self) -> None:
        """Another row of numbers begins."""
        self._next = float("-inf")
        self.held = None
        self.has_shown = False

    def is_due(self, progress: Progress) -> bool:
        now = self._clock()
        if now < self._next:
            self.held = progress
            return False
        self._next = now + self._every_s
        self.held = None
        self.has_shown = True
        return True


def progress_line(progress: Progress, columns: int) -> str:
    """One line of at most `columns` characters: bar, counts, rates and the time that is left."""
    total, done = progress.rows_total, progress.rows_done
    share = done / total if total else 1.0
    errors = sum(progress.errors.values())
    parts = [f"{done}/{total} rows {int(share * 100):3d}%", f"{progress.ok} ok, {errors} errors"]
    if progress.written:
        parts.append(f"{progress.rate_rows_s:.1f} rows/s")
        if progress.seconds > 0:
            parts.append(f"{progress.output_tokens / progress.seconds:.0f} tokens/s")
        if progress.eta_s is not None:
            parts.append(f"ETA {_clock_face(progress.eta_s)}")
        if progress.binds:
            parts.append(f"{progress.binds} binds")
    elif progress.waits_for:
        parts = [_clock_face(progress.seconds), f"waiting: {progress.waits_for}"]
    elif done < total:
        # Nothing is finished yet: the stages show that something moves.
        parts.append(f"{progress.prepared} prepared, {progress.generated} generated")
        parts.append(_clock_face(progress.seconds))
    text = "  ".join(parts)
    room = min(columns - len(text) - 3, _BAR_LONGEST)
    if room >= _BAR_SHORTEST:
        filled = int(share * room)
        text = f"[{'#' * filled}{'-' * (room - filled)}] {text}"
    return text[:columns]


def quiet_logs() -> None:
    """Keeps what is no warning of ours off the terminal; Ray's own log files still have it.

    Ray Data sets its loggers up anew when it is imported, all but their filters; a record with the
    attribute `hide` is one that its console handler leaves out.
    """
    for name, level in _CHATTY.items():
        logging.getLogger(name).addFilter(_HideBelow(level))


@dataclass(frozen=True)
class _HideBelow:
    level: int

    def filter(self, record: logging.LogRecord) -> bool:
        record.hide = getattr(record, "hide", False) or record.levelno < self.level
        return True


def _clock_face(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
