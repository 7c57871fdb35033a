"""A Ray cluster of several nodes on this machine, in a process of its own.

Each node is a raylet with its own object store and workers. The first one holds the cluster's
control service, and drivers connect to it; any other can be killed and replaced. As a program:
prints the cluster's address on stdout, starts a node for each line on stdin, and stops everything
at the end of stdin.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import processes

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")
STARTS = 3  # a busy machine may need more than the half minute that Ray gives a process
WAIT_S = 120.0
STORE_BYTES = 100 * 2**20  # of each node


@dataclass(frozen=True)
class Folders:
    """The folders of one cluster, which are checked for leftovers."""

    base: Path
    memory: Path  # of the object stores

    @property
    def temporary(self) -> Path:
        return self.base / "tmp"

    def variables(self) -> dict[str, str]:
        return {"RAY_TMPDIR": str(self.base), "TMPDIR": str(self.temporary)}


@contextmanager
def folders() -> Iterator[Folders]:
    """Makes folders with short names: the paths of Ray's sockets may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="sk-", ignore_cleanup_errors=True) as base:
        memory = Path(tempfile.mkdtemp(prefix="sk-", dir=MEMORY if MEMORY.is_dir() else base))
        places = Folders(Path(base), memory)
        places.temporary.mkdir()
        try:
            yield places
        finally:
            shutil.rmtree(memory, ignore_errors=True)


def environment(places: Folders, storage: Mapping[str, str]) -> dict[str, str]:
    """The environment of the cluster and of the drivers."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **inherited,
        **places.variables(),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        **storage,
    }


class LocalCluster:
    """A cluster of `nodes` nodes that declare `cpus` CPUs each.

    gpus: of every node but the first.
    """

    def __init__(
        self,
        nodes: int,
        cpus: int,
        places: Folders,
        variables: dict[str, str],
        gpus: int = 0,
    ):
        self._settings = json.dumps([nodes, cpus, str(places.memory), gpus])
        self._environment = variables
        self._process: subprocess.Popen[str] | None = None
        self.address = ""
        self.raylets: list[int] = []

    def __enter__(self) -> "LocalCluster":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for attempt in range(1, STARTS + 1):
            self._spawn()
            if self._read_reply():
                return
            self.kill()
            assert attempt < STARTS, "no cluster could be started"

    def _spawn(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.cluster", self._settings],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # protects the cluster from a Ctrl-C and the killer's signals
        )

    def stop(self) -> None:
        """Ends the cluster and all its processes."""
        if self._process is None:
            return
        family = self.family()
        try:
            self._process.communicate(timeout=30)  # the end of its stdin
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        processes.end_at_once(family)
        self._process = None

    def kill(self) -> int:
        """Kills everything at once, as a power failure does. Returns the number of processes."""
        assert self._process is not None
        hit = processes.end_at_once([self._process.pid, *self.family()])
        self._process.communicate()
        self._process = None
        return hit

    def kill_node(self, index: int) -> int:
        """Kills a raylet and all its workers. Returns the number of processes."""
        raylet = self.raylets[index]
        family = [raylet, *processes.descendants(raylet)]
        return processes.end_at_once(family)

    def replace_node(self, index: int) -> None:
        """Starts a new node in place of a killed one."""
        self._start_node(index)

    def add_node(self) -> None:
        """Starts another node."""
        self._start_node(len(self.raylets))

    def _start_node(self, index: int) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{index}\n")
        self._process.stdin.flush()
        assert self._read_reply(), "the cluster has ended"

    def family(self) -> set[int]:
        return set() if self._process is None else processes.descendants(self._process.pid)

    def workers(self) -> dict[int, str]:
        """The pids and titles of Ray's workers on all nodes."""
        titles = {pid: processes.title(pid) for pid in self.family()}
        return {pid: title for pid, title in titles.items() if title.startswith("ray::")}

    def _read_reply(self) -> bool:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return False
        reply = json.loads(line)
        self.address, self.raylets = reply["address"], reply["raylets"]
        return True


def main(nodes: int, cpus: int, memory: str, gpus: int) -> None:
    from ray.cluster_utils import Cluster

    # Ray and its processes write to stdout too; replies get a descriptor of their own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    options: dict[str, Any] = {
        "num_cpus": cpus,
        "object_store_memory": STORE_BYTES,
        "plasma_directory": memory,
        "include_log_monitor": False,
    }
    head = {**options, "include_dashboard": False, "no_monitor": True, "wait": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)

    def add() -> Any:
        for attempt in range(1, STARTS + 1):
            try:
                return cluster.add_node(**options, num_gpus=gpus, wait=False)
            except Exception:
                if attempt == STARTS:
                    raise
        return None

    places = [cluster.head_node, *(add() for _ in range(nodes - 1))]
    cluster.wait_for_nodes(WAIT_S)

    def reply() -> None:
        raylets = [place.all_processes["raylet"][0].process.pid for place in places]
        replies.write(json.dumps({"address": cluster.address, "raylets": raylets}) + "\n")
        replies.flush()

    reply()
    for line in sys.stdin:
        index = int(line)
        if index < len(places):
            cluster.remove_node(places[index], allow_graceful=False)
            places[index] = add()
        else:
            places.append(add())
        reply()
    cluster.shutdown()


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
