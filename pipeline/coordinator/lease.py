"""Keeps a second run away from an output that one is at work on: who works says so, now and then.

A matter of manners: that nothing is lost or doubled where two runs meet all the same is the
ledger's doing. So a sign that is old, or of a process that is gone, holds nobody up.
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
_BEAT_S = 5.0
_STALE_S = 30.0  # without a further beat: a busy machine or store may miss some
_OLD_S = 600.0  # by the clock of another machine, which may be minutes off
_LOOK_S = 1.0


@dataclass(frozen=True)
class Sign:
    """Who is at work. machine: its name. kernel: names the machine's boot and the processes that
    see each other; "" where nobody can tell. born: of the process, in ticks since the boot. beat:
    counts up. at: seconds since the epoch, by that machine's clock.
    """

    run: str
    machine: str
    kernel: str
    pid: int
    born: str
    beat: int
    at: float

    @classmethod
    def of_this_process(cls, run: str) -> "Sign":
        """Its first one."""
        pid = os.getpid()
        return cls(run, os.uname().nodename, _kernel(), pid, _born(pid), 0, time.time())

    @property
    def is_here(self) -> bool:
        """Whether it is of a process that this one could see."""
        return self.kernel == _kernel() != ""

    @property
    def is_dead(self) -> bool:
        """Whether that can be said without waiting."""
        if self.is_here:
            return not self.born or _born(self.pid) != self.born
        return time.time() - self.at > _OLD_S


@contextmanager
def held(output: Place, run: str) -> Iterator[None]:
    """Says while it lasts that `run` is at work on `output`.

    Raises RunError when another run is. It may take half a minute to find out whether one is alive.
    """
    place = output / _NAME
    sign = Sign.of_this_process(run)
    _take(place, sign)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(place, sign, over), daemon=True, name="lease")
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with suppress(Exception):  # it grows old by itself
            if (found := _found(place)) and found.run == run:
                storage.remove(place)


def at_work(output: Place) -> str | None:
    """The run that is at work, as far as can be said without waiting."""
    found = _found(output / _NAME)
    return None if found is None or found.is_dead else found.run


def _take(place: Place, sign: Sign) -> None:
    first, since = None, 0.0
    while not storage.put_if_absent(place, _data(sign)):
        found = _found(place)
        if found is not None and not found.is_dead:
            if first is None:
                first, since = found, time.monotonic()
            if found.is_here or found != first:
                raise _busy(place, found)
            if time.monotonic() - since <= _STALE_S:
                time.sleep(_LOOK_S)
                continue
        storage.remove(place)
        first = None


def _beat(place: Place, sign: Sign, over: threading.Event) -> None:
    """Until the run is over, or another one has taken its place."""
    while not over.wait(_BEAT_S):
        with suppress(Exception):  # a store that fails for good is noticed by the run itself
            found = _found(place)
            if found is not None and found.run != sign.run:
                return
            sign = replace(sign, beat=sign.beat + 1, at=time.time())
            storage.put(place, _data(sign))


def _found(place: Place) -> Sign | None:
    """None where there is no sign that can be read."""
    try:
        return Sign(**json.loads(storage.read(place)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _data(sign: Sign) -> bytes:
    return json.dumps(asdict(sign)).encode()


def _busy(place: Place, found: Sign) -> RunError:
    output = storage.redact(place.url).removesuffix(f"/{_NAME}")
    return RunError(
        f"{output}: found run {found.run} at work on it (process {found.pid} on machine "
        f"{found.machine}), expected one run at a time: stop that one, or let it end"
    )


def _kernel() -> str:
    """Names this boot of the kernel, and the processes that can see each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process that is alive began; "" for any other."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
