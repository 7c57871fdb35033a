"""Writes the URIs of a manifest: of listed files, and of names in a table."""

import os
import posixpath
import re
from urllib.parse import quote

from mediamill.model.urls import is_url
from mediamill.pipeline.fetching.member_uri import MemberUri
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

_OTHER_FORMS = re.compile(r"(?:data|range|file):", re.IGNORECASE)


def uri_of(url: str) -> str:
    """The URI of a path or URL. A path that is no valid text becomes a `file://` URL."""
    try:
        url.encode()
    except UnicodeEncodeError:
        return f"file://{quote(os.fsencode(url))}"
    return url


def member(url: str, first: int, size: int, inflated_size: int | None = None) -> str:
    """The URI of a member of at least one byte. url: of the archive, from `uri_of`."""
    return str(MemberUri(url, first, first + size - 1, inflated_size))


def resolve(value: str, base: str) -> str:
    """The URI that a table names. base: absolute folder or URL that relative paths are below."""
    if is_url(value) or _OTHER_FORMS.match(value) or value.startswith("/"):
        return value
    joined = f"{base.rstrip('/')}/{value}"
    return joined if storage.scheme(base) != "file" else os.path.normpath(joined)


def parent(place: Place) -> str:
    """The URL of the folder that a file lies in."""
    if place.is_local:
        return posixpath.dirname(place.path)
    head, _, rest = place.url.partition("://")
    folder = posixpath.dirname(rest.partition("?")[0] if head.startswith("http") else rest)
    return f"{head}://{folder}"
