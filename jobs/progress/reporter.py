"""What a job tells of its progress, and the reporter that writes it to a log as JSON lines."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TextIO

from mediamill.schemas import progress as p
from mediamill.schemas.progress import Progress

MANIFEST = "manifest"  # the phase before those of a run, see schemas/progress.py
_STARTING = (p.RAY, p.PROCESSES, p.MODEL, p.FIRST_ROWS)


class Reporter(ABC):
    """Reports the progress of a job.

    It is a function of a Progress. A phase ends when the next one begins.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._began = clock()
        self._step = self._phase = ""
        self._phase_began = self._began
        self._last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Takes the latest progress of a run."""
        if progress.phase != self._phase:
            self._change_phase(progress.phase, progress)
        self._last = progress
        self._show(progress)

    def begin(self, phase: str) -> None:
        """Begins a phase before the run."""
        self._change_phase(phase, None)

    def end(self, facts: Mapping[str, int]) -> None:
        """Ends a phase before the run, and tells what it found out."""
        if self._phase:
            self._phase_ended(self._phase, None, self._clock() - self._phase_began, facts)
        self._phase = ""

    def step(self, name: str) -> None:
        """Begins the next step of the job, which has phases of its own."""
        self.close()
        self._step, self._phase, self._last = name, "", None

    def _change_phase(self, phase: str, progress: Progress | None) -> None:
        now = self._clock()
        if self._phase:
            self._phase_ended(self._phase, progress, now - self._phase_began, {})
        self._phase, self._phase_began = phase, now
        self._phase_begun(phase)

    @abstractmethod
    def close(self) -> None:
        """Ends the report of a job or a step."""

    @abstractmethod
    def notes(self, sentences: Sequence[str]) -> None:
        """Tells what the user should know before the job starts."""

    @abstractmethod
    def stopping(self, grace_s: float | None) -> None:
        """Tells that the run ends, within `grace_s` seconds; None: at once."""

    @abstractmethod
    def _show(self, progress: Progress) -> None: ...

    @abstractmethod
    def _phase_begun(self, phase: str) -> None: ...

    @abstractmethod
    def _phase_ended(
        self, phase: str, progress: Progress | None, seconds: float, facts: Mapping[str, int]
    ) -> None: ...

    def write(self, text: str) -> None:
        """Writes text as it is."""
        self._stream.write(text)
        self._stream.flush()


class JsonReporter(Reporter):
    """Writes one JSON object a line; docs/operations.md lists their keys.

    A Progress that comes sooner than `every_s` after the one before is held back, until `close`.
    """

    def __init__(
        self, stream: TextIO, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream, clock)
        self._every_s, self._next = every_s, float("-inf")
        self._held: Progress | None = None

    def step(self, name: str) -> None:
        super().step(name)
        self._next = float("-inf")

    def close(self) -> None:
        if self._held is not None:
            self._event("progress", asdict(self._held))
            self._held = None

    def notes(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self._event("note", {"text": sentence})

    def stopping(self, grace_s: float | None) -> None:
        self._event("stopping", {"grace_s": grace_s or 0.0})

    def _show(self, progress: Progress) -> None:
        now = self._clock()
        if now < self._next or (progress.phase in _STARTING and not progress.waits_for):
            self._held = progress
            return
        self._next, self._held = now + self._every_s, None
        self._event("progress", asdict(progress))

    def _phase_begun(self, phase: str) -> None:
        if phase != MANIFEST:  # told at its end: a job that is refused is one sentence
            self._event("phase", {"phase": phase, "seconds": round(self._clock() - self._began, 3)})

    def _phase_ended(
        self, phase: str, progress: Progress | None, seconds: float, facts: Mapping[str, int]
    ) -> None:
        if phase == MANIFEST:
            self._event("phase", {"phase": phase, "seconds": 0.0})
        if facts:
            self._event("phase_ended", {"phase": phase, "seconds": round(seconds, 3), **facts})

    def _event(self, name: str, values: Mapping[str, object]) -> None:
        step = {"step": self._step} if self._step else {}
        self.write(json.dumps({"event": name, **step, **values}) + "\n")
