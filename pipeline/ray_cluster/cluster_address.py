"""Checks the address of a Ray cluster before Ray connects, which takes minutes to fail."""

import re
import socket
import time
from collections.abc import Mapping

from mediamill.model.urls import redact
from mediamill.pipeline.faults import PermanentError
from mediamill.schemas.errors import JobError

_EXPECTED = "HOST:PORT of a running head, such as 10.0.0.5:6379, or auto"
_HEAD = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+):(?P<port>[0-9]{1,5})")
_TRIES = 5  # the network of a machine, or its head, may only be coming up
_PAUSE_S, _CONNECT_S = 2.0, 10.0


def cluster_address(given: str | None, environment: Mapping[str, str]) -> str | None:
    """Returns `auto`, HOST:PORT, or None for a local cluster.

    given: as the user wrote it; without it, RAY_ADDRESS of the environment counts, which `ray job
    submit` sets.
    Raises JobError for another form.
    """
    key = "--address" if given else "RAY_ADDRESS"
    address = (given or environment.get("RAY_ADDRESS") or "local").strip()
    if address in ("auto", "local"):
        return None if address == "local" else address
    shown = redact(address)
    if address.startswith("ray://"):
        raise JobError(
            f"{key}: found '{shown}', an address of Ray Client, which cannot run a job; expected "
            f"{_EXPECTED}, on a machine of the cluster; from elsewhere use mediamill submit"
        )
    match = _HEAD.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise JobError(f"{key}: found '{shown}', expected {_EXPECTED}")
    return address


def await_head(address: str) -> None:
    """Raises PermanentError unless something listens at HOST:PORT; tries for a few seconds."""
    match = _HEAD.fullmatch(address)
    if match is None:
        return
    host = match["host"].strip("[]")
    for left in reversed(range(_TRIES)):
        try:
            socket.create_connection((host, int(match["port"])), timeout=_CONNECT_S).close()
        except OSError as error:
            if not left:
                reason = error.strerror or str(error)
                raise PermanentError(
                    f"the Ray cluster at {address} cannot be reached ({reason}); expected "
                    f"{_EXPECTED}, or no --address and no RAY_ADDRESS for a local cluster"
                ) from error
            time.sleep(_PAUSE_S)
        else:
            return
