"""A tensor-parallel engine: the first rank, which starts the others and tells them what to do.

All ranks run the same engine over the same requests in the same order, each with its part of the
network; the sums within the network keep them in step. Ranks start together and end together.
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
from mediamill.model.layers.shards import Shard, VisionSplit
from mediamill.model.requests import Completion, Request
from mediamill.model.tensor_parallel.process_group import join, leave
from mediamill.model.tensor_parallel.request_codec import request_bytes
from mediamill.model.tensor_parallel.worker import ADD, CANCEL, RESET, SETTINGS, STEP
from mediamill.model.tensor_parallel.worker_processes import WorkerProcesses


class BrokenRanksError(RuntimeError):
    """The ranks are out of step, or one is gone: this engine is of no use any more."""


def _while_all_live(
    children: WorkerProcesses, work: Callable[[], "TensorParallelEngine"]
) -> "TensorParallelEngine":
    """What `work` returns. It may wait for another rank, and is left behind when one is gone.

    Raises what it does, and RuntimeError when a rank is gone.
    """
    found: Future[TensorParallelEngine] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:  # noqa: BLE001 - for who waits
            found.set_exception(error)

    threading.Thread(target=run, daemon=True, name="loading").start()
    while children.death is None:
        if wait([found], 0.1).done:
            return found.result()
    raise RuntimeError(children.death)


class TensorParallelEngine(Engine):
    """An `Engine` whose network lies in several processes of this machine; `start` makes one."""

    _children: WorkerProcesses | None = None
    _broken: str | None = None

    @classmethod
    def start(
        cls,
        folder: str | Path,
        size: int,
        device: str = "auto",
        vision: VisionSplit = "data",
        threads: int = 1,
        timeout_s: float = 600.0,
        silence_s: float = 15.0,
        on_death: Callable[[str], None] | None = None,
        **options: Any,
    ) -> "TensorParallelEngine":
        """Load the folder over `size` processes, of which this one is the first.

        device: "cuda" gives rank i the GPU i of those that this process sees; "cpu"; "auto".
        vision: see model/layers/shards.py. threads: of each rank, on a CPU. timeout_s: for ranks
            to come, to load and to answer within a step. silence_s: without a sign of life after
            which a rank counts as hung. options: as of `Engine.load`.
        on_death: called in another thread when a rank has died, hangs or fails, with the reason:
            this process may then wait for it within the network, for ever on a GPU, so that it
            usually has to end. The other ranks are gone by then.
        Raises ModelError and ValueError as `Engine.load`, BrokenRanksError when a rank does not
        start.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and torch.cuda.device_count() < size:
            raise ValueError(f"{size} ranks need as many GPUs, found {torch.cuda.device_count()}")
        if device not in ("cpu", "cuda"):
            raise ValueError(f"device is {device!r}, expected auto, cpu or cuda")
        mrope: MRopeRule = options.get("mrope", "original")
        shard = Shard(0, size, vision)
        # What is wrong with the checkpoint is said before processes are started.
        shard.check(load_config(Folder.of(folder), mrope))
        meeting = Path(tempfile.mkdtemp(prefix="mediamill-ranks-"))
        places = [f"cuda:{rank}" if device == "cuda" else "cpu" for rank in range(size)]
        common = {
            "size": size,
            "folder": str(folder),
            "meeting": str(meeting),
            "vision": vision,
            "threads": threads,
            "timeout_s": timeout_s,
            "options": options,
        }
        children = WorkerProcesses(size - 1, silence_s, on_death)
        try:
            for rank in range(1, size):
                settings = {**common, "rank": rank, "device": places[rank]}
                try:
                    children.tell_one(rank - 1, SETTINGS, json.dumps(settings).encode())
                except OSError as error:
                    raise BrokenRanksError(f"rank {rank} is gone: {error}") from error

            def load() -> "TensorParallelEngine":
                ranks = join(meeting, 0, size, torch.device(places[0]), timeout_s)
                return cls.load(folder, places[0], shard=shard, ranks=ranks, **options)

            engine = _while_all_live(children, load)
            children.await_ready(timeout_s)
        except BaseException as error:
            children.end()
            if children.death is None:
                leave()
            else:
                raise BrokenRanksError(children.death) from error
            raise
        finally:
            shutil.rmtree(meeting, ignore_errors=True)
        engine._children = children
        children.watch()
        return engine

    @property
    def processes(self) -> list[int]:
        """Ids of the other ranks' processes."""
        return self._children.processes if self._children is not None else []

    def add(self, request: Request) -> None:
        """As of `Engine`."""
        if request.id in self._unanswered:
            super().add(request)  # which refuses it: the others need not know
        if request.media_names is None:
            # Over there a tensor that two requests have in common is two tensors.
            names = tuple(self._tensor_ids.of(visual.patches).hex() for visual in request.visuals)
            request = replace(request, media_names=names)
        self._tell(ADD, request_bytes(request))
        super().add(request)

    def step(self) -> list[Completion]:
        """As of `Engine`, but whatever fails here breaks the engine, lack of memory too.

        Raises BrokenRanksError.
        """
        self._tell(STEP)
        try:
            return super().step()
        except Exception as error:
            reason = (self._children and self._children.death) or f"{type(error).__name__}: {error}"
            self._broken = reason
            raise BrokenRanksError(reason) from error

    def cancel(self, request_id: str) -> bool:
        """As of `Engine`."""
        self._tell(CANCEL, request_id.encode())
        return super().cancel(request_id)

    def reset(self) -> None:
        """As of `Engine`."""
        self._tell(RESET)
        super().reset()

    def close(self) -> None:
        """End the other ranks; the engine is of no use after."""
        self._broken = self._broken or "the engine was closed"
        if self._children is not None:
            self._children.end()
        leave()

    def _tell(self, kind: bytes, body: bytes = b"") -> None:
        if self._broken is None and self._children is not None:
            self._broken = self._children.death
        if self._broken is not None:
            raise BrokenRanksError(self._broken)
        if self._children is not None:
            try:
                self._children.tell(kind, body)
            except OSError as error:
                self._broken = self._children.death or f"a rank is gone: {error}"
                raise BrokenRanksError(self._broken) from error
