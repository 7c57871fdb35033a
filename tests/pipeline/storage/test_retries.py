"""Exceptions of real libraries are classified by status and code; pauses; retries."""

import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.client import IncompleteRead, RemoteDisconnected

import aiohttp
import botocore.exceptions as boto
import pytest
from fsspec.exceptions import FSTimeoutError
from multidict import CIMultiDict, CIMultiDictProxy
from s3fs.errors import translate_boto_error
from yarl import URL

from mediamill.pipeline.storage import retries
from mediamill.pipeline.storage.retries import (
    Backoff,
    Deadline,
    FetchFailure,
    classify_error,
    parse_retry_after,
    retry,
)
from mediamill.schemas.errors import RowError


def of_s3(code, status, headers=None):
    meta = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    response = {"Error": {"Code": code, "Message": "secret words"}, "ResponseMetadata": meta}
    return translate_boto_error(boto.ClientError(response, "GetObject"))


def of_aiohttp(status):
    url = URL("http://h/")
    about = aiohttp.RequestInfo(url, "GET", CIMultiDictProxy(CIMultiDict()), url)
    return aiohttp.ClientResponseError(about, (), status=status, message="secret words")


class HttpError(Exception):
    """Like gcsfs's, with the status in `code`; like azure-core's, in `status_code`."""

    def __init__(self, **facts):
        super().__init__("secret words")
        self.__dict__.update(facts)


class Response:
    def __init__(self, status):
        self.status_code, self.headers = status, {"Retry-After": "7"}


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (of_s3("SlowDown", 503), "passing"),
        (of_s3("503", 503), "passing"),
        (of_s3("InternalError", 500), "passing"),
        (of_s3("RequestTimeout", 400), "passing"),
        (of_s3("ConditionalRequestConflict", 409), "passing"),
        (of_s3("ExpiredToken", 400), "expired"),
        (of_s3("400", 400), "expired"),  # the response to HEAD has no body
        (of_s3("NoSuchKey", 404), "missing"),
        (of_s3("404", 404), "missing"),
        (of_s3("AccessDenied", 403), "denied"),
        (of_s3("403", 403), "denied"),
        (of_s3("InvalidAccessKeyId", 403), "denied"),
        (of_s3("InvalidRequest", 400), "denied"),
        (of_s3("PreconditionFailed", 412), "changed"),
        (of_s3("InvalidRange", 416), "range"),
        (boto.EndpointConnectionError(endpoint_url="http://k:secret@h/?secret"), "passing"),
        (boto.ConnectionClosedError(endpoint_url="secret"), "passing"),
        (boto.ReadTimeoutError(endpoint_url="secret"), "timeout"),
        (boto.NoCredentialsError(), "denied"),
        (boto.ParamValidationError(report="secret"), "denied"),
        *((of_aiohttp(status), "passing") for status in (408, 429, 500, 502, 503, 504)),
        (of_aiohttp(401), "expired"),
        (of_aiohttp(403), "denied"),
        (of_aiohttp(404), "missing"),
        (of_aiohttp(410), "missing"),
        (of_aiohttp(400), "denied"),
        (aiohttp.ClientPayloadError("secret"), "passing"),
        (aiohttp.ServerDisconnectedError(), "passing"),
        (caused(aiohttp.ClientPayloadError("x"), HttpError(code=400)), "passing"),
        (HttpError(code=503), "passing"),
        (HttpError(code="404"), "missing"),
        (HttpError(status_code=503, error_code="ServerBusy"), "passing"),
        (HttpError(status_code=403, error_code="AuthenticationFailed"), "denied"),
        (HttpError(response=Response(429)), "passing"),
        (HttpError(response=Response(404)), "missing"),
        (caused(OSError("wrapped"), HttpError(response=Response(403))), "denied"),
        (FSTimeoutError(), "timeout"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError(), "passing"),
        (RemoteDisconnected("secret"), "passing"),
        (IncompleteRead(b"secret"), "passing"),
        (socket.gaierror(socket.EAI_NONAME, "x"), "missing"),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "passing"),
        (ssl.SSLCertVerificationError("secret"), "denied"),
        (FileNotFoundError("secret"), "missing"),
        (PermissionError("secret"), "denied"),
        (OSError(5, "secret"), "passing"),
        (KeyError("secret"), "other"),
        (Exception("secret"), "passing"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_kinds_of_failures(error, kind):
    failure = classify_error(error)
    assert failure.kind == kind
    assert "secret" not in failure.reason


def test_a_cycle_of_causes_ends():
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert classify_error(first).kind == "passing"


def test_retry_after_is_a_number_or_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < parse_retry_after(soon) <= 60
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert parse_retry_after(" 7 ") == 7
    for nonsense in (None, "", "soon", "-5", "1e9", "٣", "Wed, 99 Oct 2015 07:28:00 GMT"):
        assert parse_retry_after(nonsense) is None
    assert classify_error(HttpError(response=Response(503))).retry_after_s == 7
    assert classify_error(of_s3("SlowDown", 503, {"retry-after": "3"})).retry_after_s == 3


def test_pauses_double_up_to_a_ceiling_with_jitter():
    backoff = Backoff(tries=9, base_s=1.0, cap_s=8.0)
    passing = FetchFailure("passing", "")
    for attempt, ceiling in enumerate((1, 2, 4, 8, 8, 8), start=1):
        drawn = [backoff.pause_s(attempt, passing) for _ in range(300)]
        assert 0 <= min(drawn) < ceiling * 0.1
        assert ceiling * 0.9 < max(drawn) <= ceiling
    requested_pause = FetchFailure("passing", "", retry_after_s=5.0)
    assert min(backoff.pause_s(1, requested_pause) for _ in range(100)) >= 5
    assert backoff.pause_s(1, FetchFailure("passing", "", retry_after_s=1e9)) < 60


@pytest.fixture
def no_pause(monkeypatch):
    pauses = []
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    return pauses


def failing(*errors):
    """A function that raises these, one a call, and then returns the number of its calls."""
    calls = []

    def action():
        calls.append(None)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return len(calls)

    return action


def test_only_transient_failures_are_retried(no_pause):
    busy, missing = of_s3("SlowDown", 503), FileNotFoundError()
    assert retry(failing(*[busy] * 5), Backoff(6)) == 6
    with pytest.raises(OSError, match="secret words"):
        retry(failing(*[busy] * 6), Backoff(6))
    with pytest.raises(FileNotFoundError):
        retry(failing(busy, missing), Backoff(6))
    assert len(no_pause) == 5 + 5 + 1
    with pytest.raises(RowError):
        retry(failing(RowError("fetch_denied", "")), Backoff(6))


def test_expired_credentials_are_renewed_once(no_pause):
    expired, renewed = of_s3("ExpiredToken", 400), []
    assert retry(failing(expired), Backoff(6), lambda: renewed.append(1)) == 2
    with pytest.raises(PermissionError):
        retry(failing(expired, expired), Backoff(6), lambda: renewed.append(2))
    assert renewed == [1, 2]
    assert not no_pause


def test_no_attempt_starts_after_the_deadline(no_pause):
    with pytest.raises(ConnectionError):
        retry(failing(*[ConnectionError()] * 3), Backoff(6), deadline=Deadline(0))
    assert not no_pause


def test_paused_time_does_not_count():
    deadline = Deadline(100)
    left = deadline.left_s
    with deadline.paused():
        for _ in range(1000):
            assert left - 1 < deadline.left_s <= left
    assert left - 1 < deadline.left_s <= left
