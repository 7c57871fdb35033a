"""Classifies the exceptions of storage libraries, and retries actions that fail transiently.

Exceptions are classified by the HTTP status and error code that they carry, and by the names of
their types, so this module imports none of the libraries.
"""

import os
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, IncompleteRead, LineTooLong
from typing import Any, Literal, TypeVar

from mediamill.pipeline.storage.disk_room import is_full
from mediamill.schemas.errors import JobError, RowError

FailureKind = Literal[
    "passing", "timeout", "missing", "denied", "expired", "changed", "range", "conflict", "other"
]

_TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 530)
_MISSING_STATUSES = (404, 410)
# Error codes of S3 and compatible stores, which are more specific than the status.
_CODES: dict[str, FailureKind] = {
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
# Parts of the names of the exceptions that aiohttp, httpx, http.client and botocore raise when a
# response is interrupted. Some carry a status that no server sent, so names are checked first.
_INTERRUPTED_NAMES = re.compile(
    "Payload|ContentLength|TransferEncoding|Disconnected|ConnectionClosed"
)
# Types of exceptions, or a part of their names, with the failure that they stand for.
_TYPES: tuple[tuple[tuple[type[BaseException], ...], str | None, FailureKind, str], ...] = (
    ((ssl.SSLCertVerificationError,), None, "denied", "the server's certificate is not valid"),
    ((FileExistsError,), None, "conflict", "the file already exists"),
    ((FileNotFoundError, NotADirectoryError), None, "missing", "no such file"),
    ((PermissionError,), None, "denied", "no permission"),
    ((TimeoutError,), "Timeout", "timeout", "took too long"),
    ((ConnectionRefusedError,), None, "passing", "the connection was refused"),
    ((ConnectionError, IncompleteRead), None, "passing", "the connection broke"),
    ((ssl.SSLError,), None, "passing", "the TLS connection failed"),
    ((LineTooLong,), None, "passing", "the headers of the answer are too long"),
    ((HTTPException,), None, "passing", "the server's answer is not valid HTTP"),
    ((), "Credential", "denied", "no credentials were found"),  # of botocore and google
    ((), "ParamValidation", "denied", "the name of the bucket or key is not valid"),  # of botocore
)
_BUGS = TypeError, AttributeError, LookupError, NameError, RuntimeError  # ours or a library's
_MAX_RETRY_AFTER_S = 30.0  # a longer Retry-After is shortened to this
_Result = TypeVar("_Result")


class ContentChangedError(OSError):
    """The file changed while it was read."""


class IncompleteError(OSError):
    """Fewer bytes arrived than were announced, or other bytes."""


@dataclass(frozen=True)
class FetchFailure:
    """A classified exception. `reason` has no secrets.

    kind: "passing" and "timeout" may be retried, "expired" with new credentials.
    retry_after_s: the pause that the server asks for, in seconds.
    """

    kind: FailureKind
    reason: str
    retry_after_s: float | None = None

    @property
    def may_pass(self) -> bool:
        return self.kind in ("passing", "timeout")


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with full jitter: a random pause between zero and its ceiling, so that
    many clients of a busy server do not return at the same moment.

    tries: attempts in a row without progress before giving up.
    base_s, cap_s: ceiling of the first pause, which doubles with each, and the largest, in seconds.
    """

    tries: int = 6
    base_s: float = 0.5
    cap_s: float = 20.0

    def pause_s(self, attempt: int, failure: FetchFailure) -> float:
        """Returns the pause in seconds after the `attempt`-th failure in a row."""
        jitter = random.uniform(0.0, min(self.cap_s, self.base_s * 2 ** (attempt - 1)))
        return jitter + min(failure.retry_after_s or 0.0, _MAX_RETRY_AFTER_S)


class Deadline:
    """A deadline that can be paused while the work waits for something else."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._paused_at: float | None = None

    @property
    def left_s(self) -> float:
        """Seconds that are left; zero or negative when the deadline has passed."""
        return self._end - (self._paused_at or time.monotonic())

    def check(self) -> None:
        """Raises TimeoutError when the deadline has passed."""
        if self.left_s <= 0:
            raise TimeoutError("took too long")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Extends the deadline by the time spent in the block. For one thread at a time."""
        self._paused_at = start = time.monotonic()
        try:
            yield
        finally:
            self._end += time.monotonic() - start
            self._paused_at = None


def retry(
    action: Callable[[], _Result],
    backoff: Backoff,
    renew: Callable[[], object] | None = None,
    deadline: Deadline | None = None,
) -> _Result:
    """Calls `action` until it succeeds, and returns its value; retries transient failures only.

    renew: obtains new credentials; called at most once, when the old ones have expired.
    deadline: no attempt starts after it.
    Raises what the last attempt raised.
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
            too_late = deadline is not None and pause >= deadline.left_s
            if not failure.may_pass or too_late or attempt >= backoff.tries:
                raise
        time.sleep(pause)


def classify_error(error: BaseException) -> FetchFailure:
    """Returns the failure that an exception and its causes stand for."""
    causes = list(_causes(error))
    for cause in causes:
        if _INTERRUPTED_NAMES.search(type(cause).__name__):
            return FetchFailure("passing", "the connection broke")
        if failure := _from_error_code(cause) or _from_status(cause):
            return failure
    for cause in causes:
        if failure := _from_type(cause):
            return failure
    return FetchFailure("passing", type(error).__name__)


def parse_retry_after(value: str | None) -> float | None:
    """Returns the seconds that a Retry-After header (number or date) asks for; None if invalid."""
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


def failure_of_status(status: int, code: str = "", retry_after: str | None = None) -> FetchFailure:
    """Returns the failure that an HTTP status and a store's error code stand for."""
    reason = f"the server answered {status}" + (f" {code}" if code else "")
    wait = parse_retry_after(retry_after)
    if status in _MISSING_STATUSES or _CODES.get(code) == "missing":
        return FetchFailure("missing", "no such file")
    if code in _CODES:
        return FetchFailure(_CODES[code], reason, wait)
    if status in _TRANSIENT_STATUSES:
        return FetchFailure("passing", reason, wait)
    if status == 401:
        return FetchFailure("expired", reason)
    if status in (412, 416):
        return FetchFailure("changed" if status == 412 else "range", reason)
    return FetchFailure("denied", reason)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the exception, its cause, the cause's cause, ...; ends where they form a cycle."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _from_error_code(error: BaseException) -> FetchFailure | None:
    """Botocore's ClientError: its `response` has the error code, status and headers."""
    response: Any = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    details, meta = response.get("Error") or {}, response.get("ResponseMetadata") or {}
    code = str(details.get("Code") or "")
    if code == "400":  # a response to HEAD has no body with a more specific code
        return FetchFailure("expired", "the server answered 400")
    status = meta.get("HTTPStatusCode")
    headers = meta.get("HTTPHeaders") or {}
    plain = code if code.isascii() and code.isalnum() and len(code) < 60 else ""
    number = int(status) if isinstance(status, int) else (int(code) if code.isdigit() else 0)
    return failure_of_status(number, plain, headers.get("retry-after"))


def _from_status(error: BaseException) -> FetchFailure | None:
    """aiohttp, gcsfs, azure-core, huggingface_hub and requests: an attribute has the status."""
    response: Any = getattr(error, "response", None)
    places = ((error, "status"), (error, "status_code"), (error, "code"), (response, "status_code"))
    for status in (getattr(holder, name, None) for holder, name in places):
        if isinstance(status, str) and status.isdigit():
            status = int(status)
        if isinstance(status, int) and 400 <= status <= 599:
            headers: Any = getattr(error, "headers", None) or getattr(response, "headers", {})
            wait = headers.get("Retry-After") if hasattr(headers, "get") else None
            code = str(getattr(error, "error_code", "") or "")  # azure-core's
            return failure_of_status(status, code if code.isalnum() else "", wait)
    return None


def _from_type(error: BaseException) -> FetchFailure | None:
    name = type(error).__name__
    match error:
        case ContentChangedError():
            return FetchFailure("changed", "the file changed while it was read")
        case IncompleteError():
            return FetchFailure("passing", str(error))
        case socket.gaierror():
            unknown = {getattr(socket, name, None) for name in ("EAI_NONAME", "EAI_NODATA")}
            if error.errno in unknown:
                return FetchFailure("missing", "no such host")
            return FetchFailure("passing", "the host's name could not be looked up")
        case ImportError():
            return FetchFailure("denied", f"the package {error.name} is not installed")
    for types, name_part, kind, reason in _TYPES:
        if isinstance(error, types) or (name_part and name_part in name):
            return FetchFailure(kind, reason)
    if isinstance(error, _BUGS):
        return FetchFailure("other", name)
    if is_full(error):
        return FetchFailure("other", "the disk is full")
    if isinstance(error, OSError) and error.errno:
        return FetchFailure("passing", os.strerror(error.errno))
    return None
