"""Checks the address of a Ray cluster before Ray connects, which takes minutes to fail."""

import re
import socket
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from mediamill.model.urls import redact
from mediamill.pipeline.faults import PermanentError
from mediamill.schemas.errors import JobError

_EXPECTED = "HOST:PORT of a running head, such as 10.0.0.5:6379, or auto"
_HEAD = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+):(?P<port>[0-9]{1,5})")
_TOKEN_KEYS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = Path(".ray", "auth_token")  # in the home folder
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
    if address.startswith(("http://", "https://")):
        raise JobError(
            f"{key}: found '{shown}', the URL of a dashboard, which mediamill submit takes; to run "
            f"the job from here, expected {_EXPECTED}"
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


def is_reachable(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    match = _HEAD.fullmatch(address)
    if match is None:
        return True
    try:
        place = (match["host"].strip("[]"), int(match["port"]))
        socket.create_connection(place, timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def use_token(environment: MutableMapping[str, str]) -> None:
    """Lets Ray use the token of the cluster if this user has one, as `ray start` itself does.

    A RAY_AUTH_MODE that is set counts. Has an effect before Ray is imported.
    """
    if "RAY_AUTH_MODE" in environment:
        return
    home = environment.get("HOME")
    in_file = home is not None and (Path(home) / _TOKEN_FILE).is_file()
    if in_file or any(environment.get(key) for key in _TOKEN_KEYS):
        environment["RAY_AUTH_MODE"] = "token"


def token_sentence(environment: Mapping[str, str]) -> str:
    """Returns what is wrong with the token that a cluster has refused, and what is expected."""
    mode = environment.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        return f"the cluster wants a token: found RAY_AUTH_MODE={mode}, expected token"
    for key in _TOKEN_KEYS:
        if environment.get(key):
            return f"the cluster refused the token of {key}, expected that of its head"
    if mode is None:
        return (
            "the cluster wants a token: expected that of its head in ~/.ray/auth_token or "
            "RAY_AUTH_TOKEN"
        )
    return "the cluster refused the token of ~/.ray/auth_token, expected that of its head"
