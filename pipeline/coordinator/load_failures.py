"""Counts the failures of workers to load their stage, and says when no further try makes sense.

A try is one start of an actor's process that ends before its stage is loaded: its constructor
raised, or the process was killed. An actor's tries count anew once it has loaded.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from mediamill.pipeline.coordinator.quarantine import WorkerId

MAX_TRIES = 3  # in a row, of one actor
_DIED = "its process was killed while it loaded; the machine may lack memory (see Ray's logs)"


class _State(Enum):
    LOADING = auto()
    LOADED = auto()
    FAILED = auto()


@dataclass
class _Actor:
    worker: WorkerId
    state: _State = _State.LOADING
    tries: int = 0


@dataclass(frozen=True)
class LoadFailure:
    """A failed try. tries: of this actor, in a row. hopeless: no actor of the pool has loaded."""

    tries: int
    hopeless: bool
    error: str


class LoadFailures:
    """Tracks the actors of all pools.

    is_alive: whether a node, by its id, is still in the cluster.
    """

    def __init__(self, is_alive: Callable[[str], bool]) -> None:
        self._is_alive = is_alive
        self._actors: dict[str, _Actor] = {}  # by actor id, which a restart keeps
        self.lost: Counter[str] = Counter()  # processes that were replaced, by pool

    def enter(self, worker: WorkerId) -> LoadFailure | None:
        """Notes that a process has started. Returns the failure of the actor's process before."""
        actor = self._actors.setdefault(worker.actor, _Actor(worker))
        before, actor.worker = actor.worker, worker
        if before == worker:
            return None  # a retried call
        self.lost[worker.pool] += 1
        died = actor.state is _State.LOADING and self._is_alive(before.node)
        failure = self.failed(worker, _DIED) if died else None
        actor.state = _State.LOADING
        return failure

    def loaded(self, worker: WorkerId) -> None:
        """Notes that a process works, or is ready to."""
        actor = self._actors.setdefault(worker.actor, _Actor(worker))
        if actor.worker == worker:
            actor.state, actor.tries = _State.LOADED, 0

    def failed(self, worker: WorkerId, error: str) -> LoadFailure:
        """Notes that a process could not load its stage."""
        actor = self._actors.setdefault(worker.actor, _Actor(worker))
        actor.state, actor.tries = _State.FAILED, actor.tries + 1
        # A node where nothing loads must not end a run that others carry on or may yet carry on.
        others = [
            other.state is not _State.FAILED and other.tries < MAX_TRIES
            for other in self._actors.values()
            if other is not actor
            and other.worker.pool == worker.pool
            and self._is_alive(other.worker.node)
        ]
        return LoadFailure(actor.tries, actor.tries >= MAX_TRIES and not any(others), error)

    def loading(self) -> tuple[Counter[str], Counter[str]]:
        """Returns by pool how many actors load, and how many have loaded."""
        loading, loaded = Counter[str](), Counter[str]()
        for actor in self._actors.values():
            (loaded if actor.state is _State.LOADED else loading)[actor.worker.pool] += 1
        return loading, loaded
