"""The head's last deed: jobs that were submitted to a real Ray head are told to stop, and drain."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.files import KUBERAY, clusters
from tests.ray_head import Head, head_environment, ray_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Takes a second to end once it is told to, longer than nothing and shorter than the wait.
DRAINS = """
import pathlib, signal, sys, time
def drain(*_):
    time.sleep(4)
    pathlib.Path(sys.argv[1]).write_text("drained")
    sys.exit(143)
signal.signal(signal.SIGTERM, drain)
pathlib.Path(sys.argv[1]).write_text("began")
time.sleep(600)
"""


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """A head in the environment that its container would have."""
    [container] = clusters()["RayJob"]["headGroupSpec"]["template"]["spec"]["containers"]
    given = {one["name"]: one["value"] for one in container["env"]}
    with ray_head(tmp_path / "head.log", head_environment(**given)) as found:
        yield found


def test_jobs_drain_before_their_head_goes(head: Head, tmp_path: Path) -> None:
    address, environment = head.dashboard, head.environment
    submitted = tmp_path / "drains.py"
    submitted.write_text(DRAINS)
    mark = tmp_path / "mark"
    job = f"{sys.executable} {submitted} {mark}"
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--no-wait"]
    command += ["--address", address, "--submission-id", "night", "--", *job.split()]
    deadline = time.monotonic() + 240
    # The process that takes jobs is the last one of a head to come.
    while subprocess.run(command, env=environment, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(2)
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    stop = [sys.executable, str(KUBERAY / "stop_jobs.py"), "--address", address, "--wait-s", "60"]
    ended = subprocess.run(stop, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "still runs" not in ended.stdout
    assert mark.read_text() == "drained"
    # A second time there is nothing to stop.
    again = subprocess.run(stop, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0
