"""Connects to a Ray cluster or starts a local one, waits for its nodes, and configures Ray Data."""

import logging
import math
import os
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mediamill
from mediamill.pipeline.faults import PermanentError, root_cause
from mediamill.pipeline.ray_cluster.block_stats import ClearBlockStats
from mediamill.pipeline.ray_cluster.cluster_address import (
    await_head,
    cluster_address,
    token_sentence,
    use_token,
)
from mediamill.pipeline.ray_cluster.pool_sizes import Node, Pools, TooSmallError, size_pools
from mediamill.pipeline.ray_cluster.quiet import no_stderr, quiet, restored_sigterm
from mediamill.pipeline.ray_cluster.worker_packages import check_workers
from mediamill.schemas.job import Resources
from mediamill.schemas.job_resources import size_range

if TYPE_CHECKING:
    from ray.data import DataContext

_MIN_CPUS = 2
_LOCAL_LABEL = {"mediamill-cluster": "local"}  # several runs may share such a cluster
_STARTS = 3
_WAIT_POLL_S = 1.0
_NO_PROGRESS_S = 2 * 3600  # loading a large model and one slow video must fit


def import_ray(address: str | None) -> None:
    """Imports Ray with its settings for this address, see `ray_cluster`. Starts nothing."""
    address = cluster_address(address, os.environ)
    if "ray" not in sys.modules:
        _set_environment(address)
    import ray.data  # noqa: F401


@contextmanager
def ray_cluster(address: str | None, own_stages: bool = False) -> Iterator[bool]:
    """Connects to Ray, and yields whether nodes may join; they cannot join a local cluster.

    own_stages: whether workers must be able to import modules of the caller's own folders.

    Uses the connection that this process has, or else the cluster at `address`, by default at
    RAY_ADDRESS, which `ray job submit` sets, or else a local cluster that is stopped at the end.
    Raises JobError for an address that is none, PermanentError for one where no cluster is.
    """
    address = cluster_address(address, os.environ)
    if "ray" not in sys.modules:
        _set_environment(address)
    import ray

    if ray.is_initialized():
        with quiet():
            yield not any(_LOCAL_LABEL.items() <= node.labels.items() for node in ray_nodes())
        return
    with restored_sigterm():
        if address is not None:
            _connect(address, own_stages)
        else:
            _start_local(own_stages)
    try:
        with quiet():
            if address is not None:
                check_workers(address)
            yield address is not None
    finally:
        ray.shutdown(wait_for_processes=True)  # of a local cluster


def check_local_room(address: str | None, check_room: Callable[[Sequence[Node]], object]) -> None:
    """Calls `check_room` with the node of the local cluster that `ray_cluster` starts, if any."""
    import_ray(address)
    import ray

    if cluster_address(address, os.environ) is None and not ray.is_initialized():
        check_room([_this_machine()])


def ray_nodes() -> list[Node]:
    """Returns the nodes that are alive."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            memory=node["Resources"].get("memory", 0.0),
            labels=node.get("Labels") or {},
        )
        for node in nodes
        if node["Alive"]
    ]


def await_pools(
    resources: Resources,
    prepare_bytes: int,
    wait_s: float,
    on_wait: Callable[[str], None],
    nodes: Callable[[], list[Node]] = ray_nodes,
    generates: bool = True,
) -> Pools:
    """Returns the pools as soon as the cluster has room for them, after at most `wait_s` seconds.

    Asks the cluster's autoscaler, if it has one, to start the missing nodes.

    prepare_bytes: the memory that one prepare actor may need.
    on_wait: called about once a second with what is missing; what it raises ends the wait.
    nodes: returns the nodes that are alive.
    Raises TooSmallError, a JobError, when the cluster stays too small.
    """
    deadline, requested = time.monotonic() + wait_s, False
    try:
        while True:
            try:
                return size_pools(resources, nodes(), prepare_bytes, generates)
            except TooSmallError as error:
                if time.monotonic() >= deadline:
                    waited = f", after {wait_s:g} s (resources.wait_s)" if wait_s else ""
                    raise TooSmallError(f"{error}{waited}") from None
                missing = str(error)
            if not requested:
                _request_nodes(resources)
                requested = True
            on_wait(missing)
            time.sleep(min(_WAIT_POLL_S, max(0.0, deadline - time.monotonic())))
    except BaseException:
        if requested:
            _request_nodes(None)  # or idle nodes would be kept
        raise


def _request_nodes(resources: Resources | None) -> None:
    """Asks Ray's autoscaler, if there is one, for the least that the job can start with.

    Ray Data asks for the rest. None withdraws the request.
    """
    from ray.autoscaler import sdk

    bundles: list[dict[str, float]] = []
    labels: list[dict[str, str]] = []
    if resources is not None:
        on_gpu = resources.device == "cuda"
        cpus = {"CPU": float(_MIN_CPUS)}
        replica = {"GPU": float(resources.tensor_parallel)} if on_gpu else cpus
        replicas = size_range(resources.replicas)[0] or 1
        bundles = [cpus, *([replica] * replicas)]
        generate = dict(resources.labels.generate)
        labels = [dict(resources.labels.prepare), *([generate] * replicas)]
    sdk.request_resources(bundles=bundles, bundle_label_selectors=labels)


def _connect(address: str, own_stages: bool) -> None:
    """Raises PermanentError if there is no cluster, or one of another version of Ray or Python."""
    import ray

    if address != "auto":
        await_head(address)
    try:
        with no_stderr():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **_job_config(own_stages),
            )
    except Exception as error:  # Ray raises several types
        reason = root_cause(error)
        if "AuthenticationError" in reason or type(error).__name__ == "AuthenticationError":
            reason = token_sentence(os.environ)
            raise PermanentError(f"the Ray cluster at {address}: {reason}") from error
        if "ersion mismatch" in str(error):
            raise PermanentError(" ".join(str(error).split())) from error
        if "Could not find any running Ray instance" in reason:
            reason = "no Ray cluster runs on this machine"
        raise PermanentError(
            f"the Ray cluster at {address} cannot be used: {reason}; expected the address of a "
            "running head, with the token of the cluster if it has one"
        ) from error


def _this_machine() -> Node:
    """Returns the node that a local cluster will have, by Ray's own rules."""
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    spec = ResourceAndLabelSpec(num_cpus=_local_cpus(), labels=_LOCAL_LABEL).resolve(is_head=True)
    cpus, gpus, memory = spec.num_cpus or 0, spec.num_gpus or 0, spec.memory or 0
    return Node(cpus, gpus, memory, spec.labels or {})


def _local_cpus() -> int:
    # With fewer, Ray Data's own tasks would wait endlessly for the actors.
    return max(os.cpu_count() or 1, _MIN_CPUS)


class _NoFolders(list[str]):
    """Stays empty, though Ray adds the current folder and the script's."""

    def extend(self, _folders: Iterable[str]) -> None:
        """Does nothing."""


def _job_config(own_stages: bool) -> dict[str, Any]:
    """Returns arguments of `ray.init` with which workers import nothing from the user's folders.

    By default Ray puts the current folder and the script's first on the path of all workers: a
    `torch.py` or `json.py` there would be imported for the library of that name.
    """
    from ray.job_config import JobConfig

    folders = [str(Path.cwd()), str(Path(sys.argv[0]).resolve().parent)]
    package = str(Path(mediamill.__file__).parents[1])
    is_submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # Ray adds no folder then
    if own_stages or is_submitted or package in folders:
        return {}
    config = JobConfig()
    config._py_driver_sys_path = _NoFolders()
    return {"job_config": config}


def _start_local(own_stages: bool) -> None:
    """Starts Ray on this machine. Retries, since a busy machine may take longer than Ray's 30 s."""
    import ray

    for attempt in range(1, _STARTS + 1):
        try:
            with no_stderr():
                ray.init(
                    num_cpus=_local_cpus(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    labels=_LOCAL_LABEL,
                    **_job_config(own_stages),
                )
        except BaseException as error:
            ray.shutdown(wait_for_processes=True)
            if attempt == _STARTS or not isinstance(error, Exception):
                raise
        else:
            return


def _set_environment(address: str | None) -> None:
    """Sets what Ray reads from the environment when it is imported, unless the user has set it."""
    # A local cluster can only be used with this process's token.
    if address is None and os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is not None:
        use_token(os.environ)
        # Each takes 40 s where something else listens than a head.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    if address is None:
        # Ray's history of up to 100,000 tasks takes half a gigabyte, and is not used.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    # Ray's core logs for every actor pool the error that its actors might not restart.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def data_context(block_bytes: int, *on_step: Callable[[Any], None]) -> "DataContext":
    """Returns Ray Data's settings for this job, and leaves the current context unchanged.

    block_bytes: of one object between the stages.
    on_step: called with the executor after each step of Ray Data's scheduling loop; what they
        raise ends the execution.
    """
    from ray.data import DataContext
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.data.context import AutoscalingConfig

    steps = (*on_step, ClearBlockStats().on_execution_step)

    class StepCallback(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            for step in steps:
                step(executor)

    with warnings.catch_warnings():  # the copy reads Ray's deprecated settings too
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext.get_current().copy()
    context.target_max_block_size = block_bytes
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    context.max_errored_blocks = 0  # errors of a row are in the row; any other is a bug
    context.max_consecutive_actor_init_deaths = 2
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Only autoscaler.py resizes pools; Ray Data just starts actors up to the minimum size.
    context.autoscaling_config = AutoscalingConfig(
        actor_pool_util_upscaling_threshold=math.inf, actor_pool_util_downscaling_threshold=-1.0
    )
    context.custom_execution_callback_classes = [StepCallback]
    context.enable_fallback_to_arrow_object_ext_type = False  # no pickles in columns
    return context
