"""A processor for the decoding processes of tests: the real one, and "files" that do harm.

Such a file is `trap(action, value)`. What it does is done in the process that decodes, in earnest:
real signals, real memory, real bytes on the wire.
"""

import ctypes
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.decoding import child, wire
from pipeline.decoding.child import load_processor

FACTORY = f"{__name__}:load"
_LEAKS: list[np.ndarray] = []


def trap(action: str, value: object = "") -> bytes:
    return f"TRAP {action} {value}".encode()


class Trapped:
    """The real processor, but for traps."""

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

    def _tell(self, what):
        """Facts of the process that decodes, as the error's text."""
        raise RuntimeError({"pid": os.getpid, "parent": os.getppid}[what]())

    def _connect(self, port):
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5):
            pass

    def _run(self, program):
        os.execv(program, [program])

    def _remove(self, path):
        Path(path).unlink()

    def _kill(self, process):
        os.kill(int(process), signal.SIGKILL)

    def _say(self, header):
        """The answer will be these words."""
        child._tell = lambda link, told: wire.send(link, header.encode())

    def _send(self, number):
        """The answer will be these bytes, with a handle that nobody asked for."""
        raw = bytes.fromhex(number)
        child._tell = lambda link, told: link.sendmsg(
            [raw], [(1, 1, np.array([0, 1], np.int32).tobytes())]
        )


def load(**arguments):
    return Trapped(load_processor(**arguments))
