"""Reads the log of a submitted job: its driver's JSON lines, its text, and lines of Ray's own."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mediamill.schemas.progress import Progress, progress_of

# Ray's logs in Python and in C++, what its Jobs API writes first, and warnings of its libraries.
_RAY_LINES = re.compile(
    r"Running entrypoint for job "
    r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\s+[A-Z]+ \S+:\d+ -- "
    r"|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z] \d+ \d+\] "
    r"|\((raylet|pid=|autoscaler|gcs_server|\w+ pid=)"
    r"|\S+\.py:\d+: \w*Warning: "
)
_PROGRESS, _STOPPING = "progress", "stopping"


@dataclass(frozen=True)
class JobLog:
    """What the end of a log says of a job.

    progress: the latest; None if there is none yet. phase: of the driver, when it tells one.
    stopping: whether the job was asked to stop. text: the last line that is no JSON and not Ray's.
    """

    progress: Progress | None = None
    phase: str = ""
    stopping: bool = False
    text: str = ""


def event_of(line: str) -> Mapping[str, Any] | None:
    """Returns the object that a JSON line of a job's driver holds; None for another line."""
    if not line.startswith('{"event": '):
        return None
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values.get("event"), str) else None


def progress_in(event: Mapping[str, Any]) -> Progress | None:
    """Returns the progress that an event tells; None for another event."""
    if event["event"] != _PROGRESS:
        return None
    try:
        return progress_of(event)
    except (TypeError, AttributeError):
        return None


def is_of_ray(line: str) -> bool:
    """Whether Ray wrote a line, and not the job."""
    return _RAY_LINES.match(line) is not None


def read_log(lines: Iterable[str]) -> JobLog:
    """Returns what the lines say."""
    progress, phase, stopping, text = None, "", False, ""
    for line in lines:
        event = event_of(line)
        if event is None:
            if line.strip() and not line.startswith("{") and not is_of_ray(line):
                text = line.strip()
        elif event["event"] == "phase":
            phase = str(event.get("phase", ""))
        elif event["event"] == _STOPPING:
            stopping = True
        else:
            progress = progress_in(event) or progress
    return JobLog(progress, phase, stopping, text)


@dataclass
class Lines:
    """Cuts a text that comes in pieces into lines."""

    _rest: str = field(default="", init=False)

    def add(self, text: str) -> list[str]:
        """Returns the lines that are complete now, without their line breaks."""
        *lines, self._rest = (self._rest + text).split("\n")
        return lines

    def end(self) -> list[str]:
        """Returns the last line, if it has no line break."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []
