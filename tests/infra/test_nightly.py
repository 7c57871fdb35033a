"""The nightly pod's script, against a server that answers as the Kubernetes API does."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.infra.files import KUBERAY

SCRIPT = KUBERAY / "nightly.py"
BASE = "/apis/ray.io/v1/namespaces/mill/rayjobs"
TOKEN = "a-token"


class Api:
    """One RayJob at most. Each look at it takes the next of `states`, the last one again."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        self.states: list[tuple[str, str]] = []
        self.calls: list[tuple[str, str]] = []
        self.trouble: list[int] = []
        self.made = 0

    def put(self, manifest: dict[str, Any], deployment: str = "", job: str = "") -> None:
        self.made += 1
        self.found = {**manifest, "status": {}}
        self.found["metadata"] = {**manifest["metadata"], "uid": f"uid-{self.made}"}
        self._state(deployment, job)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.calls.append((method, path))
        if self.trouble:
            return self.trouble.pop(0), {"message": "trouble"}
        if method == "POST" and path == BASE:
            if self.found:
                return 409, {}
            self.put(body)
            return 201, self.found
        if self.found is None or path != f"{BASE}/{self.found['metadata']['name']}":
            return 404, {}
        if method == "DELETE":
            gone, self.found = self.found, None
            return 200, gone
        shown = json.loads(json.dumps(self.found))
        if self.states:
            self._state(*self.states.pop(0))
        return 200, shown

    def _state(self, deployment: str, job: str) -> None:
        assert self.found is not None
        self.found["status"] = {"jobDeploymentStatus": deployment, "jobStatus": job}


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def server(api: Api) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            code, said = api.answer(self.command, self.path, body) if known else (401, {})
            data = json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _do

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "namespace").write_text("mill")
    return tmp_path


def start(server: str, account: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(KUBERAY / "rayjob.yaml"), "--api", server]
    command += ["--account", str(account), "--every-s", "0.05"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def made(api: Api) -> int:
    return sum(method == "POST" for method, _ in api.calls)


RUNNING = [("Initializing", "PENDING"), ("Running", "RUNNING")]
MANIFEST = {"metadata": {"name": "mediamill"}}


def test_a_run_is_created_and_followed_to_its_end(api: Api, server: str, account: Path) -> None:
    api.states = [*RUNNING, ("Complete", "SUCCEEDED")]
    code, out, err = finish(start(server, account))
    assert (code, err, made(api)) == (0, "", 1)
    assert "Running RUNNING" in out
    assert api.found is not None
    assert api.found["spec"]["entrypoint"] == "sh /etc/mediamill/run.sh"


@pytest.mark.parametrize("end", [("Failed", "FAILED"), ("Failed", ""), ("Complete", "STOPPED")])
def test_a_run_that_fails_is_told(
    end: tuple[str, str], api: Api, server: str, account: Path
) -> None:
    api.states = [*RUNNING, end]
    assert finish(start(server, account))[0] == 1


def test_a_run_that_is_there_is_followed(api: Api, server: str, account: Path) -> None:
    api.put(MANIFEST, "Running", "RUNNING")
    api.states = [("Running", "RUNNING"), ("Complete", "SUCCEEDED")]
    assert finish(start(server, account))[0] == 0
    assert made(api) == 0
    assert ("DELETE", f"{BASE}/mediamill") not in api.calls


@pytest.mark.parametrize("end", [("Complete", "SUCCEEDED"), ("Failed", "FAILED")])
def test_last_nights_run_makes_room(
    end: tuple[str, str], api: Api, server: str, account: Path
) -> None:
    api.put(MANIFEST, *end)
    process = start(server, account)
    while made(api) == 0:
        assert process.poll() is None
        time.sleep(0.02)
    api.states = [("Complete", "SUCCEEDED")]
    assert finish(process)[0] == 0
    assert api.made == 2


def test_an_api_that_is_away_for_a_moment_is_asked_again(
    api: Api, server: str, account: Path
) -> None:
    api.trouble = [503, 500, 429]
    api.states = [*RUNNING, ("Complete", "SUCCEEDED")]
    assert finish(start(server, account))[0] == 0
    assert api.trouble == []


def test_a_no_is_final_and_told_without_the_token(api: Api, server: str, account: Path) -> None:
    api.trouble = [403]
    code, out, err = finish(start(server, account))
    assert code == 2
    assert "403" in err
    assert TOKEN not in out + err
    assert len(api.calls) == 1


def test_a_pod_that_goes_leaves_the_run_alone(api: Api, server: str, account: Path) -> None:
    process = start(server, account)
    while made(api) == 0:
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert finish(process)[0] == 143
    assert api.found is not None
    again = start(server, account)
    api.states = [("Complete", "SUCCEEDED")]
    assert finish(again)[0] == 0
    assert api.made == 1
