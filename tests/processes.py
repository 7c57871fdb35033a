"""Processes of this machine: who descends from whom, what they are called, and how they are ended.

Reads /proc; knows nothing of Ray.
"""

import os
import signal
import time
from collections.abc import Collection
from pathlib import Path


def parents() -> dict[int, int]:
    """The parent of each process that lives; a zombie does not."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[0] != "Z":
            found[int(path.parent.name)] = int(fields[1])
    return found


def descendants(root: int) -> set[int]:
    """Processes that `root` has started, and those that they have."""
    family, by_child = {root}, parents()
    while more := {pid for pid, parent in by_child.items() if parent in family} - family:
        family |= more
    return family - {root}


def title(pid: int) -> str:
    """What the process calls itself; empty when it has ended."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return data.replace(b"\0", b" ").decode(errors="replace").strip()


def with_variable(name: str, value: str) -> set[int]:
    """Processes that were started with this value in their environment, whoever is their parent."""
    wanted = f"{name}={value}".encode()
    found = set()
    for pid in parents():
        try:
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
        except OSError:
            continue
    return found


def end_at_once(pids: Collection[int]) -> int:
    """SIGKILLs them; the number of those that were there."""
    hit = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        hit += 1
    return hit


def wait_for_end(pids: Collection[int], seconds: float) -> set[int]:
    """Those of the processes that are alive after `seconds`, or none as soon as none is."""
    end = time.monotonic() + seconds
    while (left := set(pids) & parents().keys()) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def memory(pid: int, name: str) -> int:
    """Bytes: VmRSS, VmHWM (the peak), RssAnon ... as /proc/PID/status has them; 0 if not there."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
