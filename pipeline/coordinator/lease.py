"""Keeps a second run away from an output: a run holds a lease on it and renews it with heartbeats.

It is advisory: the ledger stays correct with two concurrent runs. A lease that was not renewed for
long, or whose process has ended, does not count.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mediamill.pipeline.faults import RunError
from mediamill.pipeline.ledger.ledger import HIDDEN
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

_NAME = f"{HIDDEN}/lease.json"
_HEARTBEAT_S = 5.0
_EXPIRY_S = 30.0  # without a heartbeat: a busy machine or store may miss some
_OLD_S = 600.0  # by the clock of another machine, which may be minutes off
_POLL_S = 1.0


@dataclass(frozen=True)
class Lease:
    """The run that holds an output, and its process. It is stored as JSON under these names.

    machine: the host name.
    kernel: the host's boot id and the process's PID namespace; "" where they are not known.
    born: start time of the process, in clock ticks since boot.
    beat: the number of heartbeats.
    at: time of the last heartbeat, in seconds since the epoch, by that machine's clock.
    """

    run: str
    machine: str
    kernel: str
    pid: int
    born: str
    beat: int
    at: float

    @classmethod
    def of_this_process(cls, run: str) -> "Lease":
        pid = os.getpid()
        return cls(run, os.uname().nodename, _kernel(), pid, _start_time(pid), 0, time.time())

    @property
    def is_local(self) -> bool:
        """Whether its process is in this process's PID namespace."""
        return self.kernel == _kernel() != ""

    @property
    def is_expired(self) -> bool:
        """Whether the lease does not count any more, as far as is known without waiting."""
        if self.is_local:
            return not self.born or _start_time(self.pid) != self.born
        return time.time() - self.at > _OLD_S


@contextmanager
def hold(output: Place, run: str) -> Iterator[None]:
    """Holds the lease on `output` for `run`.

    Raises RunError when another run holds it. It may take half a minute to find out whether a run
    on another machine is alive.
    """
    place = output / _NAME
    lease = Lease.of_this_process(run)
    _acquire(place, lease)
    ended = threading.Event()
    heartbeat = threading.Thread(
        target=_heartbeat, args=(place, lease, ended), daemon=True, name="lease"
    )
    heartbeat.start()
    try:
        yield
    finally:
        ended.set()
        heartbeat.join()
        with suppress(Exception):  # it expires anyway
            if (stored := _load(place)) and stored.run == run:
                storage.remove(place)


def holder(output: Place) -> str | None:
    """Returns the run that holds the lease, as far as is known without waiting."""
    lease = _load(output / _NAME)
    return None if lease is None or lease.is_expired else lease.run


def _acquire(place: Place, lease: Lease) -> None:
    first, since = None, 0.0
    while not storage.put_if_absent(place, _encode(lease)):
        stored = _load(place)
        if stored is not None and not stored.is_expired:
            if first is None:
                first, since = stored, time.monotonic()
            if stored.is_local or stored != first:
                raise _already_held(place, stored)
            if time.monotonic() - since <= _EXPIRY_S:
                time.sleep(_POLL_S)
                continue
        storage.remove(place)
        first = None


def _heartbeat(place: Place, lease: Lease, ended: threading.Event) -> None:
    """Renews the lease until the run ends, or another run has taken it."""
    while not ended.wait(_HEARTBEAT_S):
        with suppress(Exception):  # the run itself notices a store that fails for good
            stored = _load(place)
            if stored is not None and stored.run != lease.run:
                return
            lease = replace(lease, beat=lease.beat + 1, at=time.time())
            storage.put(place, _encode(lease))


def _load(place: Place) -> Lease | None:
    """Returns None where there is no lease, or none that can be read."""
    try:
        return Lease(**json.loads(storage.read(place)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _encode(lease: Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()


def _already_held(place: Place, lease: Lease) -> RunError:
    output = storage.redact(place.url).removesuffix(f"/{_NAME}")
    return RunError(
        f"{output}: found run {lease.run} at work on it (process {lease.pid} on machine "
        f"{lease.machine}), expected one run at a time: stop that one, or let it end"
    )


def _kernel() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """Returns when a process started, in clock ticks since boot; "" if it is not alive."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
