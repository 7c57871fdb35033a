"""Keeps a small object with a run's progress beside its output, and reads it elsewhere.

OUTPUT/_mediamill/status/RUN.json is replaced every few seconds, and marked as ended at the end. A
run never fails because of it. A run that was killed is known by its lease, or by its silence.
"""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.coordinator.reporting import OnProgress
from mediamill.pipeline.faults import Drained
from mediamill.pipeline.ledger.ledger import HIDDEN
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.progress import Progress, progress_of

_FOLDER = f"{HIDDEN}/status"
_LOCAL_S, _REMOTE_S = 2.0, 5.0  # between two writes
_LAST_WRITE_S = 5.0  # that the end of a run waits for


@dataclass(frozen=True)
class StoredStatus:
    """What a run has left.

    folder: of the step, in an output of several steps; else empty.
    at: when it was written, in seconds since the epoch, by that machine's clock.
    beat: the number of writes.
    end: how the run ended; None while it works, or if it was killed.
    held: whether the run holds the lease of its output.
    """

    run: str
    folder: str
    at: float
    beat: int
    end: str | None
    progress: Progress
    held: bool = False


@contextmanager
def publishing(output: Place, run: str, on_progress: OnProgress | None) -> Iterator[OnProgress]:
    """Yields a function that takes the run's progress, for `on_progress` and for the object."""
    latest: list[tuple[float, Progress]] = []
    end: list[str] = []
    written: list[bool] = []
    ended = threading.Event()
    place = output / _FOLDER / f"{run}.json"

    def take(progress: Progress) -> None:
        latest[:] = [(time.monotonic(), progress)]
        if on_progress is not None:
            on_progress(progress)

    def write(beat: int) -> None:
        if latest:
            values = {"run": run, "at": time.time(), "beat": beat, "end": None}
            values |= {"end": end[0]} if end else {}
            taken_at, progress = latest[0]
            seconds = progress.seconds + time.monotonic() - taken_at  # goes on without news
            values["progress"] = asdict(replace(progress, seconds=seconds))
            storage.put(place, json.dumps(values).encode())
            if not written:  # a run that has nothing to do leaves that of the one before
                _remove_others(output, run)
                written.append(True)

    def write_until_ended() -> None:
        beat = 0
        while True:
            is_last = ended.wait(_LOCAL_S if output.is_local else _REMOTE_S)
            with suppress(Exception):
                write(beat)
            if is_last:
                return
            beat += 1

    writer = threading.Thread(target=write_until_ended, daemon=True, name="run status")
    writer.start()
    try:
        yield take
        end.append("finished")
    except BaseException as error:
        end.append(_end_of(error))
        raise
    finally:
        ended.set()
        writer.join(_LAST_WRITE_S)


def stored_status(output: Place, steps: Sequence[str] = ()) -> StoredStatus | None:
    """Returns the status of the run that works on the output, or else of the last one.

    steps: folders in the output that have runs of their own. None: there is no status.
    Raises OSError.
    """
    folders = [("", output), *((step, output / step) for step in steps)]
    stored = [status for name, place in folders for status in _read(name, place)]
    return max(stored, key=lambda status: (status.held, status.at), default=None)


def _read(folder: str, place: Place) -> Iterator[StoredStatus]:
    held = None
    with suppress(FileNotFoundError):
        held = lease.holder(place)
    names: Sequence[str] = ()
    with suppress(FileNotFoundError):
        names = list(storage.list_files(place / _FOLDER))
    for name in names:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            values: dict[str, Any] = json.loads(storage.read(place / _FOLDER / name))
            run = str(values["run"])
            progress = progress_of(values["progress"])
            at, beat = float(values["at"]), int(values["beat"])
            yield StoredStatus(run, folder, at, beat, values["end"], progress, run == held)


def _remove_others(output: Place, run: str) -> None:
    for name in storage.list_files(output / _FOLDER):
        if name != f"{run}.json":
            storage.remove(output / _FOLDER / name)


def _end_of(error: BaseException) -> str:
    if isinstance(error, Drained):
        return f"stopped: {error}"
    reason = storage.redact_text(str(error)) or type(error).__name__
    return f"failed: {reason}"
