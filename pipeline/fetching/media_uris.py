"""Tells what the URI of a medium names, however a row spells it, and how it is shown.

A `data:` URI may be as long as a picture. Messages, receipts and results have its beginning and its
length instead.
"""

import os
import re

from mediamill.pipeline.fetching.addresses import parse_url
from mediamill.pipeline.fetching.data_url import decode_data_url
from mediamill.pipeline.fetching.file_source import candidate_paths
from mediamill.pipeline.fetching.web_url import clean_web_url
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import RowError

_DATA = re.compile(r"[\x00-\x20]*data:", re.IGNORECASE)
_OTHER_URL = re.compile(r"[\x00-\x20]+(?=[a-zA-Z][a-zA-Z0-9+.-]*://|file:)")
_HEAD_CHARACTERS = 80  # of a shown data: URI, before its comma
_SHOWN_CHARACTERS = 500
LONG_URI = 1000  # characters; shorter ones are kept
_S3 = ("s3", "s3a", "s3n")


def clean_uri(uri: str) -> str:
    """Returns the URI in the one form that is read.

    http(s) URLs are cleaned as browsers do; white space before any other URL is removed. A path
    and the key of an object may hold anything, and are returned as they are.
    """
    if (url := clean_web_url(uri)) is not None:
        return url
    if match := _DATA.match(uri):
        return "data:" + uri[match.end() :]
    return _OTHER_URL.sub("", uri, count=1) if _OTHER_URL.match(uri) else uri


def scheme(uri: str) -> str:
    """The scheme of a clean URI in lower case; "file" for a path."""
    return "data" if uri.startswith("data:") else storage.scheme(uri)


def shown(uri: str) -> str:
    """The URI for a message: without secrets, and short."""
    uri = clean_uri(uri)
    if uri.startswith("data:"):
        return _beginning(uri)
    uri = storage.redact(re.sub(r"^(https?):///+", r"\1://", uri))  # a login may follow
    return uri if len(uri) <= _SHOWN_CHARACTERS else f"{uri[:_SHOWN_CHARACTERS]}..."


def shortened(uri: str) -> str:
    """The URI for receipts and results: of a long `data:` URI its beginning and length."""
    return _beginning(uri) if len(uri) > LONG_URI and _DATA.match(uri) else uri


def _beginning(uri: str) -> str:
    head, comma, _ = uri.lstrip()[: _HEAD_CHARACTERS + 1].partition(",")
    return f"{head[:_HEAD_CHARACTERS]}{comma}...({len(uri):,} characters)"


def same_medium(first: str, second: str, base: str) -> bool:
    """Whether two URIs name the same medium. base: the folder of relative paths."""
    if first == second:
        return True
    first, second = clean_uri(first), clean_uri(second)
    return first == second or not _identities(first, base).isdisjoint(_identities(second, base))


def _identities(uri: str, base: str) -> set[object]:
    """What a clean URI may name; a `file://` URL with percent signs may name two files."""
    try:
        match scheme(uri):
            case "http" | "https":
                return {parse_url(uri)}
            case "data":
                return {b"".join(decode_data_url(uri, len(uri)).chunks)}
            case "file":
                return {os.path.realpath(path) for path in candidate_paths(uri, base)}
            case kind if kind in _S3:
                return {("s3", uri.partition("://")[2])}
            case kind:
                return {(kind, uri.partition("://")[2])}
    except (RowError, OSError, ValueError):
        return {uri}
