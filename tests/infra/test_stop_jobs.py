"""The head's last deed: jobs that were submitted to a real Ray head are told to stop, and drain."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.files import KUBERAY, clusters

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
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a dashboard, and the environment that the head's container would have."""
    ports = []
    for _ in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    [container] = clusters()["RayJob"]["headGroupSpec"]["template"]["spec"]["containers"]
    environment = {
        **os.environ,
        **{one["name"]: one["value"] for one in container["env"]},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    folder = Path("/tmp") / f"mm{ports[0]}"  # Ray's sockets need a short path
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--num-cpus=1"]
    command += [f"--dashboard-agent-listen-port={ports[2]}", f"--temp-dir={folder}"]
    command += ["--include-dashboard=true", "--node-ip-address=127.0.0.1"]
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{ports[1]}", environment
    finally:
        process.terminate()
        process.wait(60)
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_jobs_drain_before_their_head_goes(
    head: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, environment = head
    submitted = tmp_path / "drains.py"
    submitted.write_text(DRAINS)
    mark = tmp_path / "mark"
    job = f"{sys.executable} {submitted} {mark}"
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--no-wait"]
    command += ["--address", address, "--submission-id", "night", "--", *job.split()]
    deadline = time.monotonic() + 240
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
