"""Tells the URL of a cluster's dashboard from other addresses of a Ray cluster."""

import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from mediamill.model.urls import redact
from mediamill.schemas.errors import JobError

EXPECTED = "the URL of the cluster's dashboard, such as http://HEAD:8265"
_CONNECT_S = 10.0
_HEAD_PORT = 6379  # Ray's default of what drivers connect to
_PORTS = {"http": 80, "https": 443}


def dashboard_url(given: str | None, environment: Mapping[str, str]) -> str:
    """Returns the URL of a dashboard; a missing http:// is added.

    given: as the user wrote it; without it, RAY_API_SERVER_ADDRESS of the environment counts, or a
    URL in RAY_ADDRESS.
    Raises JobError for another form.
    """
    key, address = "--address", given
    if not address:
        key, address = "RAY_API_SERVER_ADDRESS", environment.get("RAY_API_SERVER_ADDRESS")
    if not address:
        key, address = "RAY_ADDRESS", environment.get("RAY_ADDRESS", "")
        if not address.startswith(("http://", "https://")):
            raise JobError(f"expected --address, {EXPECTED}")
    address = address.strip().rstrip("/")
    shown = redact(address)
    if address in ("auto", "local"):
        raise JobError(
            f"{key}: found '{address}', which mediamill run takes; expected {EXPECTED}, or "
            "http://127.0.0.1:8265 on the head itself"
        )
    if address.startswith("ray://"):
        raise JobError(f"{key}: found '{shown}', an address of Ray Client; expected {EXPECTED}")
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    try:
        port = (parts.port or _PORTS[parts.scheme]) if parts.scheme in _PORTS else 0
    except ValueError:
        port = 0
    if not port or not parts.hostname or any(letter.isspace() for letter in url):
        raise JobError(f"{key}: found '{shown}', expected {EXPECTED}")
    if "://" not in address and port == _HEAD_PORT:
        raise JobError(
            f"{key}: found '{shown}', the port that mediamill run --address connects to; expected "
            f"{EXPECTED}"
        )
    return url


def why_silent(url: str) -> str:
    """Returns a sentence that says why a request to the dashboard at `url` had no answer."""
    parts = urlsplit(url)
    shown = redact(url)
    try:
        port = parts.port or _PORTS[parts.scheme]
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        return (
            f"nothing answers at {shown} ({reason}), expected the dashboard of a running head: it "
            "needs the package ray[default] there (`pip install 'ray[default]'`, then start it "
            "again) and, for other machines, `ray start --head --dashboard-host=0.0.0.0`"
        )
    return (
        f"what listens at {shown} is no dashboard of Ray; if it is the port that mediamill run "
        f"--address connects to, expected {EXPECTED}"
    )
