"""A real Ray head with its dashboard, started as a program, for one test or several."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.ports import free_ports

_START_S = 240


@dataclass(frozen=True)
class Head:
    """dashboard, metrics: URLs. gcs: what drivers connect to. environment: that it runs in."""

    dashboard: str
    metrics: str
    gcs: str
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes]"

    def scrape(self) -> str:
        """What Prometheus would read of this node."""
        with urllib.request.urlopen(self.metrics, timeout=20) as answer:
            return str(answer.read().decode())


@contextmanager
def ray_head(
    log: Path, environment: Mapping[str, str], python: str = sys.executable, cpus: int = 1
) -> Iterator[Head]:
    """A head that answers. python: of its own environment. Ended, and waited for, at the end."""
    gcs, dashboard, agent, metrics = free_ports(4)
    folder = Path("/tmp") / f"mm{gcs}"  # Ray's sockets need a short path
    command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    command += [f"--temp-dir={folder}", "--include-dashboard=true", "--node-ip-address=127.0.0.1"]
    command += [f"--object-store-memory={256 * 1024**2}"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=dict(environment), stdout=file, stderr=file, cwd=log.parent
        )
    found = Head(
        f"http://127.0.0.1:{dashboard}",
        f"http://127.0.0.1:{metrics}/metrics",
        f"127.0.0.1:{gcs}",
        environment,
        process,
    )
    try:
        _await(found, log)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            subprocess.run(["rm", "-rf", str(folder)], check=True)


def _await(head: Head, log: Path) -> None:
    """Until its dashboard and the metrics of its node answer."""
    token = head.environment["RAY_AUTH_TOKEN"]
    request = urllib.request.Request(
        f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + _START_S
    while True:
        assert head.process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(request, timeout=20):
                head.scrape()
                return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.5)


def head_environment(**more: str) -> dict[str, str]:
    """This process's, with its token, as a head's container would have it."""
    return {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", **more}
