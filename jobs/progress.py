"""Prints the progress of a run: one rewritten line on a terminal, JSON lines elsewhere."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol, TextIO

from mediamill.schemas.result import Progress

_BAR_MAX_WIDTH = 24
_BAR_MIN_WIDTH = 6
_MIN_LEVELS = {
    "ray.data.dataset": logging.WARNING,
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # warns that its own bars are off
}


class Reporter(Protocol):
    """Prints the progress of a run."""

    def __call__(self, progress: Progress) -> None:
        """Prints `progress`, or holds it back if the last one was printed a moment ago."""

    def stopping(self, grace_s: float) -> None:
        """Prints that the run ends within `grace_s` seconds."""

    def phase(self, name: str) -> None:
        """Starts the next step of the job."""

    def close(self) -> None:
        """Prints the last progress, if it was held back."""


def reporter_for(stream: TextIO) -> Reporter:
    """Returns a TerminalReporter for a terminal, else a JsonReporter."""
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
        self._throttle = _Throttle(every_s, clock)
        self._phase = ""

    def __call__(self, progress: Progress) -> None:
        if self._throttle.is_due(progress):
            self._show(progress)

    def stopping(self, grace_s: float) -> None:
        self._stream.write(
            f"\r\x1b[Kstopping: rows in flight are finished first, in at most {grace_s:g} s; "
            "press Ctrl-C again to stop at once\n"
        )
        self._stream.flush()

    def phase(self, name: str) -> None:
        self.close()
        self._throttle.reset()
        self._phase = f"{name}: "

    def close(self) -> None:
        if self._throttle.held is not None:
            self._show(self._throttle.held)
        if self._throttle.has_shown:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, progress: Progress) -> None:
        columns = self._columns or shutil.get_terminal_size().columns
        # One write (carriage return, text, erase to the end of the line), so that nothing flickers.
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
        self._throttle = _Throttle(every_s, clock)
        self._phase: dict[str, str] = {}

    def __call__(self, progress: Progress) -> None:
        if self._throttle.is_due(progress):
            self._show(progress)

    def stopping(self, grace_s: float) -> None:
        self._stream.write(json.dumps({"event": "stopping", "grace_s": grace_s}) + "\n")
        self._stream.flush()

    def phase(self, name: str) -> None:
        self.close()
        self._throttle.reset()
        self._phase = {"phase": name}

    def close(self) -> None:
        if self._throttle.held is not None:
            self._show(self._throttle.held)

    def _show(self, progress: Progress) -> None:
        event = {"event": "progress", **self._phase, **asdict(progress)}
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class _Throttle:
    """Lets one Progress pass every `every_s` seconds, and holds back the latest of the others."""

    def __init__(self, every_s: float, clock: Callable[[], float]) -> None:
        self._every_s = every_s
        self._clock = clock
        self._next = float("-inf")
        self.held: Progress | None = None
        self.has_shown = False

    def reset(self) -> None:
        """Forgets the previous step."""
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
    """One line of at most `columns` characters: bar, counts, rates and the remaining time."""
    total, done = progress.rows_total, progress.rows_done
    share = done / total if total else 1.0
    errors = sum(progress.errors.values())
    parts = [f"{done}/{total} rows {int(share * 100):3d}%", f"{progress.ok} ok, {errors} errors"]
    if progress.written:
        parts.append(f"{progress.rate_rows_s:.1f} rows/s")
        if progress.seconds > 0:
            parts.append(f"{progress.output_tokens / progress.seconds:.0f} tokens/s")
        if progress.eta_s is not None:
            parts.append(f"ETA {_duration(progress.eta_s)}")
        if progress.binds:
            parts.append(f"bottleneck: {progress.binds}")
    elif progress.waits_for:
        parts = [_duration(progress.seconds), f"waiting: {progress.waits_for}"]
    elif done < total:
        # Nothing is written yet: show that the stages are at work.
        parts.append(f"{progress.prepared} prepared, {progress.generated} generated")
        parts.append(_duration(progress.seconds))
    text = "  ".join(parts)
    width = min(columns - len(text) - 3, _BAR_MAX_WIDTH)
    if width >= _BAR_MIN_WIDTH:
        filled = int(share * width)
        text = f"[{'#' * filled}{'-' * (width - filled)}] {text}"
    return text[:columns]


def quiet_logs() -> None:
    """Hides Ray Data's informational logs from the terminal; Ray's log files still have them.

    Ray Data configures its loggers again when it is imported, but keeps their filters. Its console
    handler skips a record that has the attribute `hide`.
    """
    for name, level in _MIN_LEVELS.items():
        logging.getLogger(name).addFilter(_HideBelow(level))


@dataclass(frozen=True)
class _HideBelow:
    level: int

    def filter(self, record: logging.LogRecord) -> bool:
        record.hide = getattr(record, "hide", False) or record.levelno < self.level
        return True


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
