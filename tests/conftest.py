"""What tests share: a Ray cluster and an S3 server of this machine, started when first used."""

import gc
import hashlib
import os
import secrets
import signal
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mediamill.pipeline.ray_cluster.trim_memory import trim_memory

BUCKET = "mill"
# Folders and files whose tests run jobs on Ray.
_LONG = {
    "coordinator",
    "replica",
    "jobs",
    "test_package",
    "tasks",
    "annotate",
    "ray_cluster",
    "test_run",
}

# oneDNN keeps the code that it generates for each of the last 1,024 shapes, and tests use many more
# shapes than a job does. torch reads these settings when the first test file imports it.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

# Ray reads its settings once, when the first test file imports it. The clusters of tests, and of
# programs that tests start, share a token, so that nobody else can use them.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The parity suite's cases; the options have to be known before its own folder is read."""
    parser.addoption("--parity-seed", type=int, default=0, help="seed of the parity cases")
    parser.addoption("--parity-cases", type=int, default=28, help="number of parity cases")
    parser.addoption("--qwen-wheel", type=Path, help="wheel of qwen-agent, for its vocabulary")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Applies `sampled`, skips GPU tests where there is no GPU, and starts the longest tests first.

    At the end, one process would wait for the longest test of the other.
    """
    mark_slow_beyond_samples(items)
    items.sort(key=lambda item: not _LONG & {*item.path.parts, item.path.stem})
    items.sort(key=lambda item: "soak" not in item.path.parts)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


def mark_slow_beyond_samples(items: list[pytest.Item]) -> None:
    """Marks all cases of a test beyond its sample as slow.

    `sampled(n)` keeps n cases, chosen by a hash of their ids: the choice is the same in each run
    and does not move when other cases are added. `make slow` runs the others.
    """
    cases: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            name = item.name.partition("[")[0]
            cases.setdefault((item.path, name), []).append(item)
    for group in cases.values():
        [size] = group[0].get_closest_marker("sampled").args
        group.sort(key=lambda item: hashlib.sha256(item.name.encode()).digest())
        for item in group[size:]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _memory_is_returned() -> Iterator[None]:
    """Keeps what one file's tests freed from adding up over all files of a process."""
    yield
    gc.collect()
    trim_memory()


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_works() -> None:
    """Where a shell starts the tests in the background, they and their children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_address() -> Iterator[tuple[str, int]]:
    """Where the S3 server is or will be.

    The environment of this process and of its children says so too, in the way of AWS.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield host, port
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def s3(s3_address: tuple[str, int]) -> Iterator[str]:
    """The URL of an empty bucket on an S3 server that is really served by HTTP."""
    from moto.server import ThreadedMotoServer

    host, port = s3_address
    server = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
    server.start()
    import fsspec

    fsspec.filesystem("s3", use_listings_cache=False).mkdir(BUCKET)
    yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3_address: tuple[str, int]) -> Iterator[str]:
    """The address of a Ray cluster with two CPUs, to which this process is connected.

    Its workers know the S3 server, which may be started later.
    """
    import ray

    for last in (False, False, True):
        try:
            ray.init(
                num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
            )
            break
        except Exception:  # a busy machine may need more than the 30 s that Ray gives it
            ray.shutdown(wait_for_processes=True)
            if last:
                raise
            # Ray leaves the processes of a start that came to nothing to the garbage collector.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()
    yield ray.get_runtime_context().gcs_address
    # Else it leaves processes that are still ending to the garbage collector, which warns.
    ray.shutdown(wait_for_processes=True)
