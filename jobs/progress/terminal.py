"""Shows the progress of a job on a terminal: phases as they end, and a live view below them."""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mediamill.jobs.progress.layout import (
    ASCII,
    Field,
    Line,
    Symbols,
    Title,
    compact,
    cut,
    duration,
    phase_line,
    phase_result,
    phase_title,
    view,
    with_time,
)
from mediamill.jobs.progress.reporter import MANIFEST, Reporter
from mediamill.schemas import progress as p
from mediamill.schemas.progress import Progress

_TICK_S = 0.25
_READING = "reading the manifest, checking the job and the model"
_PLAIN_S = 10.0
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_STYLES = {
    "": "",
    "strong": "bold",
    "faint": "dim",
    "good": "green",
    "bad": "red",
    "accent": "bold cyan",
}
_GAP = "  "
_MARGIN = 1  # cells that stay free at the right: some terminals wrap a full line


class Screen:
    """A few lines at the bottom of a terminal that are rewritten, and text that scrolls above."""

    def __init__(self, stream: TextIO, size: Callable[[], tuple[int, int]] | None = None) -> None:
        """size: returns columns and lines of the terminal; None measures them."""
        self._size = size or (lambda: _terminal_size(stream))
        self.console = Console(
            file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False
        )
        self.symbols = Symbols() if _is_utf8(stream) else ASCII
        self._live: Live | None = None
        self._columns = self._measure()

    @property
    def columns(self) -> int:
        """The cells of a line."""
        return self._columns

    @property
    def height(self) -> int:
        """The lines that the live part may have."""
        return max(1, self.console.size.height - 2)

    def _measure(self) -> int:
        columns, lines = self._size()
        self.console.size = (columns, lines)
        return max(1, columns - _MARGIN)

    def resized(self) -> bool:
        """Measures the terminal. After a change the screen is empty, since lines were wrapped."""
        before = self._columns
        self._columns = self._measure()
        if self._columns == before:
            return False
        if self._live is not None:
            self.hide()
            self.console.clear()
        return True

    def show(self, lines: Sequence[Line]) -> None:
        """Replaces the live lines."""
        group = Group(*(rich_text(line) for line in lines))
        if self._live is None:
            self._live = Live(
                group,
                console=self.console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(group, refresh=True)

    def hide(self) -> None:
        """Removes the live lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def print(self, line: Line) -> None:
        """Prints a line above the live ones."""
        self.console.print(rich_text(line))


def rich_text(line: Line) -> Text:
    """Returns a line with its styles."""
    text = Text(no_wrap=True, overflow="crop")
    for number, field in enumerate(line):
        text.append(_GAP if number else "")
        text.append(field.text, _STYLES[field.style])
    return text


class TerminalReporter(Reporter):
    """Shows phases and a live view, until `close`."""

    def __init__(
        self,
        stream: TextIO,
        title: Title,
        screen: Screen | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream, clock)
        self._title, self._screen = title, screen or Screen(stream)
        self._lock, self._closed = threading.RLock(), threading.Event()
        self._told: list[Line] = []  # the lines of the phases, for a redraw
        self._stopping = ""  # to be printed
        self._taken_at = self._began
        self._ticks = 0
        threading.Thread(target=self._tick, daemon=True, name="view").start()

    def close(self) -> None:
        with self._lock:
            self._screen.hide()
            if self._last is not None and self._last.written:
                step = f"{self._step}: " if self._step else ""
                columns = self._screen.columns
                text = step + compact(replace(self._last, eta_s=None), columns - len(step))
                self._screen.console.print(Text(text, no_wrap=True, overflow="crop"))
            self._last, self._phase = None, ""

    def end_view(self) -> None:
        """Ends the thread that redraws the view."""
        self.close()
        self._closed.set()

    def step(self, name: str) -> None:
        with self._lock:
            super().step(name)
            self._title = Title(self._title.command, self._title.output, name)
            self._told.clear()

    def notes(self, sentences: Sequence[str]) -> None:
        with self._lock:
            for sentence in sentences:
                self._screen.console.print(Text(f"note: {sentence}"))

    def stopping(self, grace_s: float | None) -> None:
        # Called by a signal handler, which may have interrupted a write: the thread prints it.
        self._stopping = (
            "stopping: nothing had begun"
            if grace_s is None
            else f"stopping: rows in flight are finished first, in at most {grace_s:g} s; "
            "press Ctrl-C again to stop at once"
        )

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            super().__call__(progress)

    def begin(self, phase: str) -> None:
        with self._lock:
            super().begin(phase)
            self._draw()

    def end(self, facts: Mapping[str, int]) -> None:
        with self._lock:
            super().end(facts)

    def _show(self, progress: Progress) -> None:
        self._taken_at = self._clock()

    def _phase_begun(self, phase: str) -> None: ...

    def _phase_ended(
        self, phase: str, progress: Progress | None, seconds: float, facts: Mapping[str, int]
    ) -> None:
        if phase == MANIFEST:
            text = f"{facts.get('rows', 0):,} rows, {facts.get('finished', 0):,} finished"
            name = "manifest"
        elif progress is not None and phase not in (p.ROWS, p.FINISHING):
            name, text = phase_result(phase, progress)
        else:
            return
        line = phase_line(name, text, seconds, self._screen.columns)
        self._told.append(line)
        self._screen.print(line)

    def _tick(self) -> None:
        while not self._closed.wait(_TICK_S):
            with self._lock:
                self._ticks += 1
                if self._screen.resized():
                    for line in self._told:
                        self._screen.print(line)
                if self._stopping:
                    self._screen.console.print(Text(self._stopping))
                    self._stopping = ""
                self._draw()

    def _draw(self) -> None:
        """Redraws the live lines; the clock goes on without news."""
        columns = self._screen.columns
        lines: list[Line] = []
        if self._last is not None and self._phase in (p.ROWS, p.FINISHING):
            current = with_time(self._last, self._clock() - self._taken_at)
            lines += view(current, self._title, columns, self._screen.height, self._screen.symbols)
        elif self._phase:
            text = _READING if self._last is None else phase_title(self._last)
            seconds = duration(self._clock() - self._phase_began)
            spin = _SPINNER[self._ticks % len(_SPINNER)] if self._screen.symbols != ASCII else "*"
            text = cut(text, max(1, columns - len(seconds) - 4))
            lines.append([Field(f"{spin} {text}"), Field(seconds, 1, "faint")])
        if lines:
            self._screen.show(lines)


class PlainReporter(Reporter):
    """Prints whole lines of text, for a terminal that cannot rewrite them."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._next = 0.0

    def notes(self, sentences: Sequence[str]) -> None:
        self.write("".join(f"note: {sentence}\n" for sentence in sentences))

    def stopping(self, grace_s: float | None) -> None:
        within = "at once" if grace_s is None else f"in at most {grace_s:g} s"
        self.write(f"stopping, {within}\n")

    def close(self) -> None:
        if self._last is not None and self._last.written:
            self.write(f"{compact(replace(self._last, eta_s=None))}\n")
        self._last = None

    def step(self, name: str) -> None:
        super().step(name)
        self.write(f"step: {name}\n")

    def _show(self, progress: Progress) -> None:
        now = self._clock()
        if now >= self._next and progress.phase == p.ROWS:
            self._next = now + _PLAIN_S
            self.write(f"{compact(progress)}\n")

    def _phase_begun(self, phase: str) -> None:
        texts = {MANIFEST: _READING, p.ROWS: ""}
        text = texts.get(phase, phase_title(Progress(0, 0, phase=phase)))
        self.write(f"{text}\n" if text else "")

    def _phase_ended(
        self, phase: str, progress: Progress | None, seconds: float, facts: Mapping[str, int]
    ) -> None:
        if facts:
            text = ", ".join(f"{number:,} {name}" for name, number in facts.items())
            self.write(f"{text}  {seconds:.1f} s\n")


def is_dumb(stream: TextIO) -> bool:
    """Whether the terminal cannot move its cursor."""
    return Console(file=stream).is_dumb_terminal


def _terminal_size(stream: TextIO) -> tuple[int, int]:
    for number in (_descriptor(stream), 0, 1):
        try:
            size = os.get_terminal_size(number)
        except (OSError, ValueError):
            continue
        if size.columns and size.lines:
            return size.columns, size.lines
    return 80, 24


def _descriptor(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return -1


def _is_utf8(stream: TextIO) -> bool:
    encoding = getattr(stream, "encoding", None) or sys.getdefaultencoding()
    return encoding.lower().replace("-", "") == "utf8"
