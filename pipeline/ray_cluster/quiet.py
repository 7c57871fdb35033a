"""Keeps Ray's messages from the terminal, and its signal handler from the program."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def restored_sigterm() -> Iterator[None]:
    """Restores the program's handler of SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def no_stderr() -> Iterator[None]:
    """Hides Ray core's messages about its log level on stderr. Errors are raised anyway."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides Ray's and Ray Data's messages, which would break the progress line or the summary.

    The run's own sentence says why it stopped; Ray's log files have everything.
    """
    import ray.data  # configures its loggers
    from ray._private import worker

    loggers = [logging.getLogger(module.__name__) for module in (ray, ray.data)]
    levels, shown = [logger.level for logger in loggers], worker._worker_logs_enabled
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    # As Ray's own debugger does. Else each failure of an actor puts a whole traceback on stdout.
    worker._worker_logs_enabled = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\.data")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        worker._worker_logs_enabled = shown
