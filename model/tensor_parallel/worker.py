"""What a rank other than the first runs: the same engine, told what to do by the first rank.

`python -m mediamill.model.tensor_parallel.worker` is started by leader_engine.py. Commands come
through stdin, and their end is this process's end: whatever becomes of the first rank, nothing
stays behind.
"""

import ctypes
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

from mediamill.model.tensor_parallel.framing import receive, send

# Frames to a rank, and from it.
SETTINGS, ADD, STEP, CANCEL, RESET = b"J", b"A", b"S", b"C", b"R"
READY, ALIVE, FAILED = b"R", b"H", b"E"
BEAT_S = 1.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves the first rank until its pipe ends."""
    _die_with_parent()
    commands: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
    # Libraries may print to stdout, which is the way back.
    back = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_listen, args=(sys.stdin.buffer, commands), daemon=True).start()
    told = threading.Lock()
    threading.Thread(target=_beat, args=(back, told), daemon=True).start()
    try:
        _serve(commands, back, told)
    except BaseException as error:  # noqa: BLE001 - the first rank has to know, whatever it is
        with told:
            send(back, FAILED, f"{type(error).__name__}: {error}".encode(errors="replace"))
        os._exit(1)


def _serve(
    commands: "queue.SimpleQueue[tuple[bytes, bytes]]", back: IO[bytes], told: threading.Lock
) -> None:
    kind, body = commands.get()
    if kind != SETTINGS:
        raise ValueError(f"found the command {kind!r}, expected settings")
    settings: dict[str, Any] = json.loads(body)
    import torch

    torch.set_num_threads(settings["threads"])
    from mediamill.model.engine import Engine
    from mediamill.model.layers.shards import Shard
    from mediamill.model.tensor_parallel.process_group import join
    from mediamill.model.tensor_parallel.request_codec import request_of

    rank, size = settings["rank"], settings["size"]
    device = torch.device(settings["device"])
    ranks = join(Path(settings["meeting"]), rank, size, device, settings["timeout_s"])
    engine = Engine.load(
        settings["folder"],
        settings["device"],
        shard=Shard(rank, size),
        ranks=ranks,
        **settings["options"],
    )
    with told:
        send(back, READY)
    while True:
        kind, body = commands.get()
        if kind == ADD:
            engine.add(request_of(body))
        elif kind == STEP:
            engine.step()
        elif kind == CANCEL:
            engine.cancel(body.decode())
        elif kind == RESET:
            engine.reset()
        else:
            raise ValueError(f"found the command {kind!r}")


def _listen(pipe: IO[bytes], commands: "queue.SimpleQueue[tuple[bytes, bytes]]") -> None:
    while (found := receive(pipe)) is not None:
        commands.put(found)
    os._exit(0)  # also while the main thread waits for a rank that is gone


def _beat(back: IO[bytes], told: threading.Lock) -> None:
    ended = threading.Event()
    while not ended.wait(BEAT_S):
        try:
            with told:
                send(back, ALIVE)
        except OSError:
            os._exit(0)


def _die_with_parent() -> None:
    """On Linux also a stopped process ends with the first rank."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1:
            os._exit(0)


if __name__ == "__main__":
    main()
