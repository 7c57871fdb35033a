"""Turns a RayJob manifest into one finished run: creates it, or follows the one that runs already.

Knows the Kubernetes API and KubeRay's words, nothing of captions. Exit codes: 0 the run succeeded;
1 it failed; 2 the manifest or the API refuses; 143 this pod was told to end, the run goes on.
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
_GONE, _TAKEN = 404, 409
_BUSY = {429, 500, 502, 503, 504}
_TROUBLE_S = 600  # the API may be away for so long


class RefusedError(Exception):
    """The API says no, and would say it again."""


class RayJobs:
    """The RayJobs of one namespace. account: a folder with token, ca.crt and namespace."""

    def __init__(self, api: str, account: Path, every_s: float) -> None:
        namespace = (account / "namespace").read_text().strip()
        self._url = f"{api}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._account, self._every_s = account, every_s
        certificate = account / "ca.crt"
        self._tls = ssl.create_default_context(
            cafile=str(certificate) if certificate.exists() else None
        )

    def get(self, name: str) -> dict[str, Any] | None:
        """None when there is no such RayJob."""
        code, found = self._call("GET", f"/{name}", None)
        return None if code == _GONE else found

    def create(self, manifest: dict[str, Any]) -> bool:
        """False when one of that name is there."""
        code, _ = self._call("POST", "", manifest)
        return code != _TAKEN

    def delete(self, name: str) -> None:
        """And all that it owns, in a while."""
        self._call("DELETE", f"/{name}", {"propagationPolicy": "Foreground"})

    def _call(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Code and answer, after as many tries as it takes. Raises RefusedError."""
        until = time.monotonic() + _TROUBLE_S
        while True:
            try:
                return self._once(method, path, body)
            except urllib.error.HTTPError as error:
                if error.code in (_GONE, _TAKEN):
                    return error.code, None
                said = error.read(2000).decode(errors="replace")
                trouble = f"{error.code}: {said}"
                if error.code not in _BUSY:
                    raise RefusedError(f"{method} {self._url}{path}: {trouble}") from error
            except (OSError, TimeoutError) as error:
                trouble = str(error)
            if time.monotonic() > until:
                raise RefusedError(f"{method} {self._url}{path}: {trouble}")
            time.sleep(self._every_s)

    def _once(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        # Read anew each time: the cluster renews it.
        token = (self._account / "token").read_text().strip()
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:
            return answer.status, json.load(answer)


def run_once(
    jobs: RayJobs, manifest: dict[str, Any], every_s: float, say: Callable[[str], None]
) -> bool:
    """Whether the run succeeded. One that has ended is replaced, one that runs is followed."""
    name = manifest["metadata"]["name"]
    found = jobs.get(name)
    if found is not None and _ended(found):
        say(f"deleting the last run of {name}, which has ended")
        jobs.delete(name)
        uid = found["metadata"].get("uid")
        while (found := jobs.get(name)) is not None and found["metadata"].get("uid") == uid:
            time.sleep(every_s)
    say(f"following the run of {name} that is there" if found else f"creating {name}")
    if found is None:
        jobs.create(manifest)
    last = ""
    while (found := jobs.get(name)) is not None:
        status = found.get("status", {})
        now = " ".join(filter(None, (status.get("jobDeploymentStatus"), status.get("jobStatus"))))
        if now != last:
            say(f"{name}: {now or 'new'} {status.get('message') or ''}".rstrip())
            last = now
        if _ended(found):
            return bool(status.get("jobStatus") == "SUCCEEDED")
        time.sleep(every_s)
    say(f"{name} was deleted")
    return False


def _ended(found: dict[str, Any]) -> bool:
    return found.get("status", {}).get("jobDeploymentStatus") in _ENDED


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run a RayJob once, to its end.")
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
