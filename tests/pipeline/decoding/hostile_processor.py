"""A processor for the decoding processes of tests: the real one, and "files" that do harm.

Such a file is `trap(action, value)`. What it does is done in the process that decodes, in earnest:
real signals, real memory, real bytes in the pipe.
"""

import ctypes
import gc
import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import torch

from mediamill.pipeline.decoding.decode_worker import load_processor
from mediamill.pipeline.decoding.message_stream import Sender
from mediamill.pipeline.decoding.shared_memory import SharedMemory

FACTORY = f"{__name__}:load"
_LEAKS: list[np.ndarray] = []


def trap(action: str, value: object = "") -> bytes:
    return f"TRAP {action} {value}".encode()


class Trapped:
    """The real processor, except for traps."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def prepare_media(self, data, kind=None, start_s=None, end_s=None):
        if isinstance(data, bytes) and data.startswith(b"TRAP "):
            _, action, value = data.decode().split(" ", 2)
            getattr(self, f"_{action}")(value)
            raise ValueError(f"survived {action}")
        return self._inner.prepare_media(data, kind, start_s, end_s)

    def _signal(self, name):
        signal.raise_signal(signal.Signals[name])
        time.sleep(60)

    def _read_nothing(self, _):
        ctypes.string_at(0)

    def _abort(self, _):
        os.abort()

    def _exit(self, status):
        os._exit(int(status))

    def _hang(self, _):
        while True:
            time.sleep(1)

    def _late(self, seconds):
        time.sleep(float(seconds))

    def _crash_once(self, marker):
        if not Path(marker).exists():
            os.close(os.open(marker, os.O_CREAT))
            self._read_nothing("")

    def _numpy(self, size):
        np.ones(int(size), np.uint8)

    def _torch(self, size):
        torch.ones(int(size), dtype=torch.uint8)

    def _python(self, size):
        bytearray(int(size))

    def _malloc(self, size):
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        if libc.malloc(ctypes.c_size_t(int(size))) is None:
            raise OSError(12, os.strerror(12))

    def _leak(self, size):
        _LEAKS.append(np.ones(int(size), np.uint8))

    def _write(self, path):
        with Path(path).open("wb", buffering=0) as file:
            file.write(b"x")

    def _print(self, text):
        os.write(1, text.encode())
        os.write(2, text.encode())

    def _report(self, fact):
        """A fact about the worker, as the error's text."""
        raise RuntimeError({"pid": os.getpid, "parent": os.getppid}[fact]())

    def _own_cause(self, _):
        error = ValueError("its own cause")
        raise error from error

    def _connect(self, port):
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
            pass

    def _run(self, program):
        os.execv(program, [program])

    def _remove(self, path):
        Path(path).unlink()

    def _kill(self, process):
        os.kill(int(process), signal.SIGKILL)

    def _reply(self, words):
        """The reply will be the words after the first one, which is "shared" when its data, 4 KiB
        of zeros, lie in shared memory, and else "sent".
        """
        where, _, header = words.partition(" ")
        data = [] if where == "shared" else [memoryview(bytes(4096))]
        self._reply_once(header, data, shared=where == "shared")

    def _send(self, number):
        """The reply will be these bytes."""
        raw = bytes.fromhex(number)
        Sender.send = lambda sender, *_, **__: os.write(sender._pipe, raw)

    def _flicker(self, header):
        """The reply will be this header, and its data change for ever after."""
        (memory,) = (one for one in gc.get_objects() if isinstance(one, SharedMemory))

        def flicker():
            while True:
                memory.write([memoryview(bytes(4096))])
                memory.write([memoryview(b"\xff" * 4096)])

        threading.Thread(target=flicker, daemon=True).start()
        self._reply_once(header, [], shared=True)

    def _scribble(self, _):
        """Overwrites the shared memory, then crashes."""
        (memory,) = (one for one in gc.get_objects() if isinstance(one, SharedMemory))
        memory.write([memoryview(b"\xee" * 64 * 1024**2)])
        self._read_nothing("")

    def _ring(self, _):
        """Rings the doorbell for ever, and never replies."""
        (sender,) = (one for one in gc.get_objects() if isinstance(one, Sender))
        while True:
            sender.ring()

    def _reply_once(self, header, data, shared):
        """Replies, and ends the process before it can reply about another row."""
        honest = Sender.send

        def send(sender, *_, **__):
            honest(sender, header.encode(), data, shared=shared, last=shared)
            sender.ring()
            time.sleep(0.1)
            os._exit(0)

        Sender.send = send


def load(**arguments):
    return Trapped(load_processor(**arguments))
