"""The process of a rank other than the first: the same engine, driven by commands.

worker_processes.py starts `python -m mediamill.model.tensor_parallel.worker`. Commands come through
stdin, and the process exits at their end, so that no process outlives the first rank.
"""

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from mediamill.model.tensor_parallel.framing import receive, send

# Kinds of frames to a worker, and from it.
SETTINGS, ADD, STEP, CANCEL, RESET = b"J", b"A", b"S", b"C", b"R"
READY, ALIVE, FAILED = b"R", b"H", b"E"
HEARTBEAT_S = 1.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Executes commands until their pipe ends."""
    _die_with_parent()
    commands: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
    # Libraries may print to stdout, which carries the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    source = (sys.stdin.buffer, commands)
    threading.Thread(target=_receive_commands, args=source, daemon=True).start()
    lock = threading.Lock()
    threading.Thread(target=_send_heartbeats, args=(replies, lock), daemon=True).start()
    try:
        _execute(commands, replies, lock)
    except BaseException as error:  # noqa: BLE001 - the first rank reports every error
        with lock:
            send(replies, FAILED, f"{type(error).__name__}: {error}".encode(errors="replace"))
        os._exit(1)


def _execute(
    commands: "queue.SimpleQueue[tuple[bytes, bytes]]", replies: IO[bytes], lock: threading.Lock
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
    from mediamill.model.tensor_parallel.request_codec import decode_request

    rank, size = settings["rank"], settings["size"]
    device = torch.device(settings["device"])
    ranks = join(Path(settings["rendezvous"]), rank, size, device, settings["timeout_s"])
    folder, shard = settings["folder"], Shard(rank, size)
    engine = Engine.load(folder, str(device), shard=shard, ranks=ranks, **settings["options"])
    with lock:
        send(replies, READY)
    while True:
        kind, body = commands.get()
        if kind == ADD:
            engine.add(decode_request(body))
        elif kind == STEP:
            engine.step()
        elif kind == CANCEL:
            engine.cancel(body.decode())
        elif kind == RESET:
            engine.reset()
        else:
            raise ValueError(f"found the command {kind!r}")


def _receive_commands(pipe: IO[bytes], commands: "queue.SimpleQueue[tuple[bytes, bytes]]") -> None:
    while (command := receive(pipe)) is not None:
        commands.put(command)
    os._exit(0)  # also while the main thread waits for a rank that is gone


def _send_heartbeats(replies: IO[bytes], lock: threading.Lock) -> None:
    while True:
        time.sleep(HEARTBEAT_S)
        try:
            with lock:
                send(replies, ALIVE)
        except OSError:
            os._exit(0)


def _die_with_parent() -> None:
    """Has Linux kill this process with its parent, also while it is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1:
            os._exit(0)


if __name__ == "__main__":
    main()
