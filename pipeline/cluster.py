"""Turns what a Ray cluster has into the sizes of the pools, and starts one where none runs.

Knows resources, not stages.
"""

import logging
import os
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.batching.default_rows import default_rows
from pipeline.running.forget import Forget
from schemas.errors import JobError
from schemas.job import Resources

if TYPE_CHECKING:
    from ray.data import DataContext

_LEAST_CPUS = 2
_STARTS = 3
_ROOMY_CPUS = 8
_TASK_CPUS = 1.5  # kept free of actors: Ray's own repartition tasks ask for a whole one each
_PREPARE_BYTES = 2 * 1024**3
_CALLS_TO_FILL = 4  # so many callers together bring as many rows as the engine works on
_BLOCK_BYTES = 32 * 1024 * 1024
_NO_PROGRESS_S = 2 * 3600  # loading a large model and one slow video must fit


@dataclass(frozen=True)
class Pools:
    """Actors of each kind, and what each asks Ray for.

    engine_threads: of an engine on CPUs. engine_rows: that one engine works on at once; call_rows:
    that one of its callers brings. write_tasks: at once; None = as many as Ray finds right.
    """

    prepare_workers: int
    prepare_cpus: float
    prepare_bytes: int
    replicas: int
    replica_cpus: float
    replica_gpus: int
    engine_threads: int
    engine_rows: int
    call_rows: int
    task_cpus: float
    write_tasks: int | None


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """A connection to Ray: the one that is there, the one at `address`, or a new local cluster.

    Without `address`, RAY_ADDRESS names the cluster, as `ray job submit` sets it. What was started
    here is stopped at the end.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if "ray" not in sys.modules:
        _settle(address)
    import ray

    if ray.is_initialized():
        with _quiet():
            yield
        return
    with _own_sigterm():
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            _start_local()
    try:
        with _quiet():
            yield
    finally:
        ray.shutdown()


def _start_local() -> None:
    """Starts Ray here; a busy machine may need more than the 30 s that Ray gives it."""
    import ray

    for attempt in range(1, _STARTS + 1):
        try:
            with _no_stderr():
                ray.init(
                    # Fewer would leave Ray Data's own tasks waiting for the actors, for ever.
                    num_cpus=max(os.cpu_count() or 1, _LEAST_CPUS),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except Exception:
            ray.shutdown()
            if attempt == _STARTS:
                raise
        else:
            return


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts its own handler in the place of the program's, which comes back here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Ray's core says on stderr that it follows the log level; what goes wrong is raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data's news would tear the progress line; its errors are still shown."""
    import ray.data  # it sets its loggers up when it is imported

    logger = logging.getLogger(ray.data.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _settle(address: str | None) -> None:
    """Settings that Ray reads when it is imported; what the user has set stays."""
    # Who does not know this process's token cannot use the cluster that it starts.
    if address is None and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Its own history of up to 100,000 tasks is half a gigabyte that nobody here looks at.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    # Ray's core tells of every actor pool, on stderr and as an error, that it might not restart.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def data_context(callback: Any) -> "DataContext":
    """Ray Data's settings for this job; the process's own stay as they are.

    callback: called by its scheduling loop, see drain.py.
    """
    from ray.data import DataContext

    with warnings.catch_warnings():
        # Copying touches Ray's own deprecated settings too.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext.get_current().copy()
    context.target_max_block_size = _BLOCK_BYTES
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    context.max_errored_blocks = 0  # what is wrong with a row is in the row; all else is a fault
    context.max_consecutive_actor_init_deaths = 2
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    callbacks: list[Any] = [callback, Forget]  # it only calls them, whatever they are
    context.custom_execution_callback_classes = callbacks
    context.enable_fallback_to_arrow_object_ext_type = False  # never a pickle in a column
    return context


def size_pools(wanted: Resources, cpus: float, gpus: float, memory: float) -> Pools:
    """The pools for a cluster with so many CPUs and GPUs and so many bytes of memory.

    All actors together leave room for Ray's tasks, or the cluster would stand still; on a small
    machine they ask for less than they use. Raises JobError when the cluster is too small.
    """
    if cpus < _LEAST_CPUS:
        raise JobError(f"the Ray cluster has {cpus:g} CPUs, expected at least {_LEAST_CPUS}")
    on_gpu = gpus >= 1
    if wanted.replicas == "auto":
        replicas = max(1, int(gpus // wanted.tensor_parallel))
    else:
        replicas = wanted.replicas
    if on_gpu and replicas * wanted.tensor_parallel > gpus:
        raise JobError(
            f"resources.replicas: found {replicas}, and the Ray cluster has {gpus:g} GPUs, "
            f"expected at most {int(gpus // wanted.tensor_parallel)}"
        )
    budget = cpus - _TASK_CPUS
    if wanted.prepare_workers == "auto":
        # With GPUs, decoding is what they wait for; without, it is a small part of the work.
        workers = max(1, int(budget - replicas) if on_gpu else int(cpus // 4))
    else:
        workers = wanted.prepare_workers
    rows = default_rows(on_gpu) if wanted.batch_rows == "auto" else wanted.batch_rows
    share = min(1.0, int(100 * budget / (workers + replicas)) / 100)
    return Pools(
        prepare_workers=workers,
        prepare_cpus=share,
        prepare_bytes=int(min(_PREPARE_BYTES, memory / 2 / workers)),
        replicas=replicas,
        replica_cpus=share,
        replica_gpus=wanted.tensor_parallel if on_gpu else 0,
        engine_threads=max(1, int(cpus - workers) // replicas),
        engine_rows=rows,
        call_rows=-(-rows // _CALLS_TO_FILL),
        task_cpus=0.5 if cpus >= _ROOMY_CPUS else 0.25,
        # Each further one is a process that has to start; a small machine does without.
        write_tasks=None if cpus >= _ROOMY_CPUS else 1,
    )
