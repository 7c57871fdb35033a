"""Prints the progress of a run: one rewritten line on a terminal, JSON lines elsewhere."""

import json
import logging
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from mediamill.schemas.result import Progress

_BAR_MAX_WIDTH = 24
_BAR_MIN_WIDTH = 6
_MIN_LEVELS = {
    "ray.data.dataset": logging.WARNING,
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # warns that its own bars are off
}


class Reporter(ABC):
    """Prints the progress of a run, at most every `every_s` seconds.

    A Progress that comes too soon is held back: `phase` and `close` print the latest, unless a
    later one was printed since.
    """

    def __init__(self, stream: TextIO, every_s: float, clock: Callable[[], float]) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._phase = ""
        self._next = float("-inf")  # time of the clock from which a Progress is printed at once
        self._held: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Prints `progress` or holds it back."""
        now = self._clock()
        if now < self._next:
            self._held = progress
            return
        self._next = now + self._every_s
        self._held = None
        self._show(progress)

    def phase(self, name: str) -> None:
        """Starts the next step of the job."""
        self.close()
        self._next = float("-inf")
        self._phase = name

    def close(self) -> None:
        """Prints the last progress, if it was held back."""
        if self._held is not None:
            self._show(self._held)
            self._held = None

    @abstractmethod
    def notes(self, sentences: Sequence[str]) -> None:
        """Prints what the user should know before the job starts."""

    @abstractmethod
    def stopping(self, grace_s: float) -> None:
        """Prints that the run ends within `grace_s` seconds."""

    @abstractmethod
    def _show(self, progress: Progress) -> None: ...

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class TerminalReporter(Reporter):
    """Rewrites one line, which `close` ends. columns: the terminal's width; None = measured."""

    def __init__(
        self,
        stream: TextIO,
        every_s: float = 0.2,
        columns: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream, every_s, clock)
        self._columns = columns
        self._has_line = False

    def notes(self, sentences: Sequence[str]) -> None:
        self._write("".join(f"note: {sentence}\n" for sentence in sentences))

    def stopping(self, grace_s: float) -> None:
        self._write(
            f"\r\x1b[Kstopping: rows in flight are finished first, in at most {grace_s:g} s; "
            "press Ctrl-C again to stop at once\n"
        )

    def close(self) -> None:
        super().close()
        if self._has_line:
            self._write("\n")
            self._has_line = False

    def _show(self, progress: Progress) -> None:
        phase = f"{self._phase}: " if self._phase else ""
        columns = self._columns or shutil.get_terminal_size().columns
        # One write (carriage return, text, erase to the end of the line), so that nothing flickers.
        self._write(f"\r{phase}{progress_line(progress, columns - 1 - len(phase))}\x1b[K")
        self._has_line = True


class JsonReporter(Reporter):
    """Writes one JSON object a line: {"event": "progress", ...}."""

    def __init__(
        self, stream: TextIO, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream, every_s, clock)

    def notes(self, sentences: Sequence[str]) -> None:
        events = [{"event": "note", "text": sentence} for sentence in sentences]
        self._write("".join(f"{json.dumps(event)}\n" for event in events))

    def stopping(self, grace_s: float) -> None:
        self._write(json.dumps({"event": "stopping", "grace_s": grace_s}) + "\n")

    def _show(self, progress: Progress) -> None:
        phase = {"phase": self._phase} if self._phase else {}
        self._write(json.dumps({"event": "progress", **phase, **asdict(progress)}) + "\n")


def reporter_for(stream: TextIO) -> Reporter:
    """Returns a TerminalReporter for a terminal, else a JsonReporter."""
    return TerminalReporter(stream) if stream.isatty() else JsonReporter(stream)


def progress_line(progress: Progress, columns: int) -> str:
    """Returns one line of at most `columns` characters: bar, counts, rates and remaining time."""
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
