"""An engine whose model is split over several processes of one machine (tensor parallelism).

All ranks run the same engine over the same requests in the same order, each with its shard of the
model; the collectives within the model keep them in step. The first rank is this process: it starts
the others and sends them every command. Ranks start together and end together.
"""

import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.engine import Engine
from mediamill.model.families.qwen2_vl.config import MRopeRule, load_config
from mediamill.model.layers.shards import Shard
from mediamill.model.requests import Completion, Request
from mediamill.model.tensor_parallel.process_group import join, leave
from mediamill.model.tensor_parallel.request_codec import encode_request
from mediamill.model.tensor_parallel.worker import ADD, CANCEL, RESET, SETTINGS, STEP
from mediamill.model.tensor_parallel.worker_processes import WorkerProcesses


class BrokenRanksError(RuntimeError):
    """A rank is gone, or the ranks are out of step: the engine cannot be used any more."""


def _load_while_alive(
    workers: WorkerProcesses, load: Callable[[], "TensorParallelEngine"]
) -> "TensorParallelEngine":
    """Returns what `load` returns. `load` runs in a thread, which is abandoned when a worker dies:
    it may wait for that worker without end.

    Raises what `load` raises, and RuntimeError when a worker has died.
    """
    future: Future[TensorParallelEngine] = Future()

    def run() -> None:
        try:
            future.set_result(load())
        except BaseException as error:  # noqa: BLE001 - raised again by future.result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="loading").start()
    while workers.death is None:
        if wait([future], 0.1).done:
            return future.result()
    raise RuntimeError(workers.death)


class TensorParallelEngine(Engine):
    """An `Engine` over several processes of this machine; `start` creates one."""

    _workers: WorkerProcesses | None = None
    _broken: str | None = None

    @classmethod
    def start(
        cls,
        folder: str | Path,
        size: int,
        device: str = "auto",
        threads: int = 1,
        timeout_s: float = 600.0,
        silence_s: float = 15.0,
        on_death: Callable[[str], None] | None = None,
        **options: Any,
    ) -> "TensorParallelEngine":
        """Loads the folder in `size` processes, of which this one is the first.

        device: "cuda" gives rank i the i-th GPU that this process sees; "cpu"; "auto".
        threads: of each rank, on a CPU.
        timeout_s: for the ranks to join, to load and to finish a collective.
        silence_s: seconds without a heartbeat after which a rank counts as hung.
        on_death: called in another thread, with the reason, when a rank has died, hangs or fails.
            The other ranks are killed by then. This process may wait for the rank within a
            collective, on a GPU without end, and usually has to exit.
        options: see `Engine.load`.
        Raises ModelError and ValueError as `Engine.load`, and BrokenRanksError when a rank does not
        start.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and torch.cuda.device_count() < size:
            raise ValueError(f"{size} ranks need as many GPUs, found {torch.cuda.device_count()}")
        if device not in ("cpu", "cuda"):
            raise ValueError(f"device is {device!r}, expected auto, cpu or cuda")
        mrope: MRopeRule = options.get("mrope", "original")
        shard = Shard(0, size)
        # A wrong checkpoint is reported before processes are started.
        shard.check(load_config(Folder.of(folder), mrope).text)
        rendezvous = Path(tempfile.mkdtemp(prefix="mediamill-ranks-"))
        devices = [f"cuda:{rank}" if device == "cuda" else "cpu" for rank in range(size)]
        settings = {
            "size": size,
            "folder": str(folder),
            "rendezvous": str(rendezvous),
            "threads": threads,
            "timeout_s": timeout_s,
            "options": options,
        }
        workers = WorkerProcesses(size - 1, silence_s, on_death)
        try:
            for rank in range(1, size):
                of_rank = {**settings, "rank": rank, "device": devices[rank]}
                try:
                    workers.send(rank - 1, SETTINGS, json.dumps(of_rank).encode())
                except OSError as error:
                    raise BrokenRanksError(f"rank {rank} is gone: {error}") from error

            def load() -> "TensorParallelEngine":
                ranks = join(rendezvous, 0, size, torch.device(devices[0]), timeout_s)
                return cls.load(folder, devices[0], shard=shard, ranks=ranks, **options)

            engine = _load_while_alive(workers, load)
            workers.await_ready(timeout_s)
        except BaseException as error:
            workers.end()
            if workers.death is None:
                leave()
            else:
                raise BrokenRanksError(workers.death) from error
            raise
        finally:
            shutil.rmtree(rendezvous, ignore_errors=True)
        engine._workers = workers
        workers.report_deaths()
        return engine

    @property
    def processes(self) -> list[int]:
        """Ids of the other ranks' processes."""
        return self._workers.processes if self._workers is not None else []

    def add(self, request: Request) -> None:
        """See `Engine`."""
        if request.id in self._unanswered:
            super().add(request)  # raises ValueError, before the other ranks receive the request
        if request.media_names is None:
            # The other ranks cannot see that two requests share a tensor.
            names = tuple(self._tensor_ids.of(visual.patches).hex() for visual in request.visuals)
            request = replace(request, media_names=names)
        self._send(ADD, encode_request(request))
        super().add(request)

    def step(self) -> list[Completion]:
        """See `Engine.step`. Every error breaks the engine, also a lack of memory.

        Raises BrokenRanksError.
        """
        self._send(STEP)
        try:
            return super().step()
        except Exception as error:
            reason = (self._workers and self._workers.death) or f"{type(error).__name__}: {error}"
            self._broken = reason
            raise BrokenRanksError(reason) from error

    def cancel(self, request_id: str) -> bool:
        """See `Engine`."""
        self._send(CANCEL, request_id.encode())
        return super().cancel(request_id)

    def reset(self) -> None:
        """See `Engine`."""
        self._send(RESET)
        super().reset()

    def close(self) -> None:
        """Ends the other ranks; the engine cannot be used any more."""
        self._broken = self._broken or "the engine was closed"
        if self._workers is not None:
            self._workers.end()
        leave()

    def _send(self, kind: bytes, body: bytes = b"") -> None:
        if self._broken is None and self._workers is not None:
            self._broken = self._workers.death
        if self._broken is not None:
            raise BrokenRanksError(self._broken)
        if self._workers is not None:
            try:
                self._workers.broadcast(kind, body)
            except OSError as error:
                self._broken = self._workers.death or f"a rank is gone: {error}"
                raise BrokenRanksError(self._broken) from error
