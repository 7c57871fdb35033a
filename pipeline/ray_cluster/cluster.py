"""Turns an address into a connection to Ray, and what Ray says of its nodes into sizes of pools.

Starts a cluster where none runs, and waits for the nodes of one that is still coming up. Knows
resources, not stages.
"""

import logging
import math
import os
import secrets
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediamill.pipeline.ray_cluster.block_stats import ClearBlockStats
from mediamill.pipeline.ray_cluster.pool_sizes import Node, Pools, TooSmallError, size_pools
from mediamill.schemas.job import Resources
from mediamill.schemas.job_resources import span

if TYPE_CHECKING:
    from ray.data import DataContext

_LEAST_CPUS = 2
_STARTED_HERE = {"mediamill-cluster": "local"}  # a label: several runs may share such a cluster
_STARTS = 3
_WAIT_POLL_S = 1.0
_NO_PROGRESS_S = 2 * 3600  # loading a large model and one slow video must fit


@contextmanager
def ray_cluster(address: str | None) -> Iterator[bool]:
    """A connection to Ray: the one that is there, the one at `address`, or a new local cluster.

    Gives whether nodes may join: a cluster that is started here stays as it is. Without `address`,
    RAY_ADDRESS names the cluster, as `ray job submit` sets it. What was started here is stopped at
    the end.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if "ray" not in sys.modules:
        _settle(address)
    import ray

    if ray.is_initialized():
        with _quiet():
            yield not any(_STARTED_HERE.items() <= node.labels.items() for node in ray_nodes())
        return
    with _own_sigterm():
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            _start_local()
    try:
        with _quiet():
            yield address is not None
    finally:
        ray.shutdown(wait_for_processes=True)  # of those that were started here


def ray_nodes() -> list[Node]:
    """The nodes that live now."""
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(
            cpus=one["Resources"].get("CPU", 0.0),
            gpus=one["Resources"].get("GPU", 0.0),
            memory=one["Resources"].get("memory", 0.0),
            labels=one.get("Labels") or {},
        )
        for one in found
        if one["Alive"]
    ]


def await_pools(
    wanted: Resources,
    prepare_bytes: int,
    wait_s: float,
    heed: Callable[[str], None],
    nodes: Callable[[], list[Node]] = ray_nodes,
    generates: bool = True,
) -> Pools:
    """The pools, as soon as the cluster has room for them, after at most `wait_s` seconds.

    heed: told about once a second what is missing; what it raises ends the wait. Raises JobError
    when the cluster stays too small. A cluster that can start nodes is asked for what is missing.
    """
    until, asked = time.monotonic() + wait_s, False
    try:
        while True:
            try:
                return size_pools(wanted, nodes(), prepare_bytes, generates)
            except TooSmallError as error:
                if time.monotonic() >= until:
                    waited = f", after {wait_s:g} s (resources.wait_s)" if wait_s else ""
                    raise TooSmallError(f"{error}{waited}") from None
                missing = str(error)
            if not asked:
                _ask_autoscaler(wanted)
                asked = True
            heed(missing)
            time.sleep(min(_WAIT_POLL_S, max(0.0, until - time.monotonic())))
    except BaseException:
        if asked:
            _ask_autoscaler(None)  # or nodes would be held that nobody uses
        raise


def _ask_autoscaler(wanted: Resources | None) -> None:
    """Asks for the least that the job can start on, or for nothing; Ray Data asks for the rest.

    Where nothing starts nodes, nobody listens.
    """
    from ray.autoscaler import sdk

    bundles: list[dict[str, float]] = []
    labels: list[dict[str, str]] = []
    if wanted is not None:
        on_gpu = wanted.device == "cuda"
        cpus = {"CPU": float(_LEAST_CPUS)}
        replica = {"GPU": float(wanted.tensor_parallel)} if on_gpu else cpus
        copies = span(wanted.replicas)[0] or 1
        bundles = [cpus, *([replica] * copies)]
        labels = [dict(wanted.labels.prepare), *([dict(wanted.labels.generate)] * copies)]
    sdk.request_resources(bundles=bundles, bundle_label_selectors=labels)


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
                    labels=_STARTED_HERE,
                )
        except Exception:
            ray.shutdown(wait_for_processes=True)
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


def data_context(block_bytes: int, *callbacks: Any) -> "DataContext":
    """Ray Data's settings for this job; the process's own stay as they are.

    block_bytes: of one object between the stages. callbacks: called by its scheduling loop, see
    drain.py and growth.py.
    """
    from ray.data import DataContext
    from ray.data.context import AutoscalingConfig

    with warnings.catch_warnings():
        # Copying touches Ray's own deprecated settings too.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext.get_current().copy()
    context.target_max_block_size = block_bytes
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    context.max_errored_blocks = 0  # what is wrong with a row is in the row; all else is a fault
    context.max_consecutive_actor_init_deaths = 2
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # How large a pool is, growth.py alone decides; Ray Data only brings it to its least size.
    context.autoscaling_config = AutoscalingConfig(
        actor_pool_util_upscaling_threshold=math.inf, actor_pool_util_downscaling_threshold=-1.0
    )
    called: list[Any] = [*callbacks, ClearBlockStats]  # it only calls them, whatever they are
    context.custom_execution_callback_classes = called
    context.enable_fallback_to_arrow_object_ext_type = False  # never a pickle in a column
    return context
