"""Turns the exceptions of storage libraries into kinds of failure, and tries again what may pass.

Each library has exceptions of its own; they are told apart by the status and the code of the
answer that they carry, not by their text. No library is imported here.
"""

import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar

from mediamill.schemas.errors import JobError, RowError

Kind = Literal[
    "passing",
    "timeout",
    "missing",
    "denied",
    "expired",
    "changed",
    "range",
    "conflict",
    "other",
]

_PASSING = (408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 530)
_MISSING = (404, 410)
# Codes of S3 and its likes, which say more than the status.
_CODES: dict[str, Kind] = {
    **dict.fromkeys(
        (
            *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"),
            *("InvalidToken", "UnauthorizedSSOTokenError", "SSOTokenLoadError"),
        ),
        "expired",
    ),
    **dict.fromkeys(
        (
            *("SlowDown", "Throttling", "ThrottlingException", "ThrottledException"),
            *("TooManyRequests", "TooManyRequestsException"),
            *("RequestLimitExceeded", "BandwidthLimitExceeded", "ProvisionedThroughputExceeded"),
            *("InternalError", "InternalServerError", "ServiceUnavailable", "RequestTimeout"),
            *("RequestTimeoutException", "IncompleteBody", "ServerBusy", "OperationTimedOut"),
            *("BadDigest", "XAmzContentSHA256Mismatch", "XMinioServerNotInitialized"),
            *("OperationAborted", "ConditionalRequestConflict"),
        ),
        "passing",
    ),
    **dict.fromkeys(("NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound", "404"), "missing"),
    **dict.fromkeys(("PreconditionFailed", "ConditionNotMet", "412"), "changed"),
    **dict.fromkeys(("InvalidRange", "416"), "range"),
}
# In the names of what aiohttp, httpx, http.client and botocore raise when an answer breaks off;
# some carry a status of their own that no server said.
_BROKEN = ("Payload", "ContentLength", "TransferEncoding", "Disconnected", "ConnectionClosed")
_LONGEST_WAIT_S = 30.0  # whatever a Retry-After says
_ANSWER = TypeVar("_ANSWER")


class ContentChangedError(OSError):
    """The file is another one than it was a moment ago."""


class IncompleteError(OSError):
    """Fewer bytes came than were announced, or not those that were."""


@dataclass(frozen=True)
class FetchFailure:
    """kind: passing and timeout may be tried again; expired, with new credentials. reason: holds
    only what is known to be no secret. retry_after_s: what the server asks for.
    """

    kind: Kind
    reason: str
    retry_after_s: float | None = None

    @property
    def may_pass(self) -> bool:
        return self.kind in ("passing", "timeout")


@dataclass(frozen=True)
class Backoff:
    """tries: in a row without success. base_s: ceiling of the first pause, doubled for each
    further one up to cap_s; a pause is drawn at random between nothing and its ceiling, so that
    many clients of a busy server do not come back at once.
    """

    tries: int = 6
    base_s: float = 0.5
    cap_s: float = 20.0

    def pause_s(self, attempt: int, failure: FetchFailure) -> float:
        """After this many failed tries."""
        drawn = random.uniform(0.0, min(self.cap_s, self.base_s * 2 ** (attempt - 1)))
        return drawn + min(failure.retry_after_s or 0.0, _LONGEST_WAIT_S)


class Deadline:
    """A point in time that moves on while the work waits for something that is not its fault."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._paused_at: float | None = None

    @property
    def left_s(self) -> float:
        """Seconds until then; not positive when it is over."""
        return self._end - (self._paused_at or time.monotonic())

    def check(self) -> None:
        """Raises TimeoutError when it is over."""
        if self.left_s <= 0:
            raise TimeoutError("took too long")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here does not count. For one thread at a time."""
        self._paused_at = began = time.monotonic()
        try:
            yield
        finally:
            self._end += time.monotonic() - began
            self._paused_at = None


def retry(
    action: Callable[[], _ANSWER],
    backoff: Backoff,
    renew: Callable[[], object] | None = None,
    deadline: Deadline | None = None,
) -> _ANSWER:
    """What `action` returns, tried again while its failures may pass.

    renew: makes new credentials, once, when the old ones have expired. Raises what the last try
    raised.
    """
    attempt, renewed = 0, False
    while True:
        try:
            return action()
        except (JobError, RowError):
            raise
        except Exception as error:
            failure = classify_error(error)
            if failure.kind == "expired" and renew is not None and not renewed:
                renewed = True
                renew()
                continue
            attempt += 1
            pause = backoff.pause_s(attempt, failure)
            late = deadline is not None and pause >= deadline.left_s
            if not failure.may_pass or late or attempt >= backoff.tries:
                raise
        time.sleep(pause)


def classify_error(error: BaseException) -> FetchFailure:
    """Which kind of failure an exception is, by what it and its causes carry."""
    chain = list(_chain(error))
    for one in chain:
        if any(word in type(one).__name__ for word in _BROKEN):
            return FetchFailure("passing", "the connection broke")
        found = _by_code(one) or _by_status(one)
        if found is not None:
            return found
    for one in chain:
        found = _by_type(one)
        if found is not None:
            return found
    return FetchFailure("passing", type(error).__name__)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date."""
    if value is None:
        return None
    text = str(value).strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), 86400.0)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def by_status(status: int, code: str = "", after: str | None = None) -> FetchFailure:
    """The failure that an HTTP answer with this status is."""
    reason = f"the server said {status}" + (f" {code}" if code else "")
    wait = retry_after(after)
    if status in _MISSING or _CODES.get(code) == "missing":
        return FetchFailure("missing", "no such file")
    if code in _CODES:
        return FetchFailure(_CODES[code], reason, wait)
    if status in _PASSING:
        return FetchFailure("passing", reason, wait)
    if status == 401:
        return FetchFailure("expired", reason)
    if status in (412, 416):
        return FetchFailure("changed" if status == 412 else "range", reason)
    return FetchFailure("denied", reason)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _by_code(error: BaseException) -> FetchFailure | None:
    """A ClientError of botocore: a `response` with the answer's code, status and headers."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    said, meta = response.get("Error") or {}, response.get("ResponseMetadata") or {}
    code = str(said.get("Code") or "")
    if code == "400":  # the answer to a HEAD, which has no body that would say more
        return FetchFailure("expired", "the server said 400")
    status = meta.get("HTTPStatusCode")
    headers = meta.get("HTTPHeaders") or {}
    plain = code if code.isascii() and code.isalnum() and len(code) < 60 else ""
    number = int(status) if isinstance(status, int) else (int(code) if code.isdigit() else 0)
    return by_status(number, plain, headers.get("retry-after"))


def _by_status(error: BaseException) -> FetchFailure | None:
    """aiohttp, gcsfs, azure-core, huggingface_hub, requests: a number somewhere."""
    response: Any = getattr(error, "response", None)
    for holder, names in ((error, ("status", "status_code", "code")), (response, ("status_code",))):
        for name in names:
            status = getattr(holder, name, None)
            if isinstance(status, str) and status.isdigit():
                status = int(status)
            if isinstance(status, int) and 400 <= status <= 599:
                headers: Any = getattr(error, "headers", None) or getattr(response, "headers", {})
                after = headers.get("Retry-After") if hasattr(headers, "get") else None
                code = str(getattr(error, "error_code", "") or "")  # azure-core's
                return by_status(status, code if code.isalnum() else "", after)
    return None


def _by_type(error: BaseException) -> FetchFailure | None:
    name = type(error).__name__
    if isinstance(error, ContentChangedError):
        return FetchFailure("changed", "the file changed while it was read")
    if isinstance(error, IncompleteError):
        return FetchFailure("passing", str(error))
    if isinstance(error, socket.gaierror):
        unknown = {getattr(socket, one, None) for one in ("EAI_NONAME", "EAI_NODATA")}
        if error.errno in unknown:
            return FetchFailure("missing", "no such host")
        return FetchFailure("passing", "the host's name could not be looked up")
    if isinstance(error, ssl.SSLCertVerificationError):
        return FetchFailure("denied", "the server's certificate is not valid")
    if isinstance(error, FileExistsError):
        return FetchFailure("conflict", "there is a file already")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return FetchFailure("missing", "no such file")
    if isinstance(error, PermissionError):
        return FetchFailure("denied", "no permission")
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return FetchFailure("timeout", "took too long")
    if isinstance(error, ConnectionError):
        return FetchFailure("passing", "the connection broke")
    if "Credential" in name:  # botocore's NoCredentialsError, google's DefaultCredentialsError
        return FetchFailure("denied", "no credentials were found")
    if isinstance(error, ImportError):
        return FetchFailure("denied", f"the package {error.name} is not installed")
    if isinstance(error, TypeError | AttributeError | LookupError | NameError | RuntimeError):
        return FetchFailure("other", name)  # a mistake, here or in a library
    if isinstance(error, OSError) and error.errno:
        return FetchFailure("passing", os.strerror(error.errno))
    if "Param" in name and "Validation" in name:  # botocore's, of an impossible bucket or key
        return FetchFailure("denied", "the name of the bucket or key is not valid")
    return None
