"""Creates a RayJob, or follows the one that already runs, until it ends.

Exit codes: 0 the run succeeded; 1 it failed; 2 the API refuses a request, or stays unavailable;
143 this pod was terminated, and the run goes on.
"""

import argparse
import json
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

_ENDED = {"Complete", "Failed", "ValidationFailed"}
_NOT_FOUND, _CONFLICT = 404, 409
_RETRYABLE = {429, 500, 502, 503, 504}
_RETRY_S = 600  # limit of an outage of the API


class RefusedError(Exception):
    """The API refuses a request, or was unavailable for _RETRY_S."""


class RayJobs:
    """The RayJobs of one namespace.

    account: a folder with token, ca.crt and namespace. every_s: seconds between retries.
    """

    def __init__(self, api: str, account: Path, every_s: float) -> None:
        namespace = (account / "namespace").read_text().strip()
        self._url = f"{api}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._account, self._every_s = account, every_s
        certificate = account / "ca.crt"
        self._tls = ssl.create_default_context(
            cafile=str(certificate) if certificate.exists() else None
        )

    def get(self, name: str) -> dict[str, Any] | None:
        """Returns the RayJob, or None if there is none of that name."""
        code, run = self._call("GET", f"/{name}", None)
        return None if code == _NOT_FOUND else run

    def create(self, manifest: dict[str, Any]) -> bool:
        """Returns False if one of that name exists."""
        code, _ = self._call("POST", "", manifest)
        return code != _CONFLICT

    def delete(self, name: str) -> None:
        """Deletes the RayJob after all that it owns."""
        self._call("DELETE", f"/{name}", {"propagationPolicy": "Foreground"})

    def _call(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Returns the status code and the response, with retries. Raises RefusedError."""
        until = time.monotonic() + _RETRY_S
        while True:
            try:
                return self._once(method, path, body)
            except urllib.error.HTTPError as error:
                if error.code in (_NOT_FOUND, _CONFLICT):
                    return error.code, None
                message = f"{error.code}: {error.read(2000).decode(errors='replace')}"
                if error.code not in _RETRYABLE:
                    raise RefusedError(f"{method} {self._url}{path}: {message}") from error
            except (OSError, TimeoutError) as error:
                message = str(error)
            if time.monotonic() > until:
                raise RefusedError(f"{method} {self._url}{path}: {message}")
            time.sleep(self._every_s)

    def _once(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        # Read each time, since the cluster renews it.
        token = (self._account / "token").read_text().strip()
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30, context=self._tls) as response:
            return response.status, json.load(response)


def run_once(
    jobs: RayJobs, manifest: dict[str, Any], every_s: float, say: Callable[[str], None]
) -> bool:
    """Returns whether the run succeeded. Replaces an ended run, and follows a running one."""
    name = manifest["metadata"]["name"]
    run = jobs.get(name)
    if run is not None and _ended(run):
        say(f"deleting the last run of {name}, which has ended")
        jobs.delete(name)
        uid = run["metadata"].get("uid")
        while (run := jobs.get(name)) is not None and run["metadata"].get("uid") == uid:
            time.sleep(every_s)
    say(f"following the existing run of {name}" if run else f"creating {name}")
    if run is None:
        jobs.create(manifest)
    last = ""
    while (run := jobs.get(name)) is not None:
        status = run.get("status", {})
        now = " ".join(filter(None, (status.get("jobDeploymentStatus"), status.get("jobStatus"))))
        if now != last:
            say(f"{name}: {now or 'new'} {status.get('message') or ''}".rstrip())
            last = now
        if _ended(run):
            return bool(status.get("jobStatus") == "SUCCEEDED")
        time.sleep(every_s)
    say(f"{name} was deleted")
    return False


def _ended(run: dict[str, Any]) -> bool:
    return run.get("status", {}).get("jobDeploymentStatus") in _ENDED


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Run a RayJob once, until it ends.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--api", default="https://kubernetes.default.svc")
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    parser.add_argument("--account", type=Path, default=Path(account))
    parser.add_argument("--every-s", type=float, default=15.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    manifest = yaml.safe_load(options.manifest.read_text())
    try:
        jobs = RayJobs(options.api, options.account, options.every_s)
        done = run_once(jobs, manifest, options.every_s, lambda text: print(text, flush=True))
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
