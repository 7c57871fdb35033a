"""Recognizes URLs, and removes secrets from them and from the messages of libraries.

Every message, log line and result that names a file or a server goes through `redact` or
`redact_text`.
"""

import re
from pathlib import Path
from urllib.parse import unquote

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(?:://|::)")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.:-]*)://")
_FILE = re.compile(r"file://(localhost(?=/|$))?", re.IGNORECASE)
_MEMBER = re.compile(r"range:[^:]{0,80}:", re.IGNORECASE)  # before the URL of a whole file
_DATA = re.compile(r"data:[^,\s]{0,80},[^\s'\"<>]*", re.IGNORECASE)
# A chain such as zip://a.jpg::https://host/b.zip or simplecache::s3://bucket/a.
_CHAIN = re.compile(r"::(?=[a-zA-Z][a-zA-Z0-9+.-]*(?:://|::))")
_PORT = re.compile(r"[^:]*:\d*|\[[^\]]*\](:\d*)?")
# In these URLs a bucket stands in place of the host, so digits after a colon are no port.
_BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs", "hf", "az", "abfs", "abfss", "adl", "oss")
_URL_IN_TEXT = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+")
_PARAMETER = re.compile(
    r"(?<![\w-])((?:[\w-]*(?:token|secret|passw(?:or)?d|signature|credential|api[_-]?key|access"
    r"[_-]?key(?:[_-]?id)?)|sig)=)[^\s&'\"<>]+",
    re.IGNORECASE,
)


def is_url(text: str) -> bool:
    """Whether the text begins with a scheme, or with the first part of a chain of URLs."""
    return _URL.match(text) is not None


def scheme(url: str) -> str:
    """The URL's scheme in lower case; "file" for a path."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else "file"


def local_path(url: str) -> str:
    """The path of a `file://` URL, or of a path, as it is written."""
    return _FILE.sub("", url, count=1) if _FILE.match(url) else url


def decoded_path(url: str) -> Path:
    """The path of a `file://` URL; percent signs are decoded unless a file has that very name."""
    path = Path(local_path(url))
    return path if path.exists() else Path(unquote(str(path)))


def redact(url: str) -> str:
    """The URL without user, password, query and fragment, each of which may be secret.

    Paths and `file://` URLs are returned unchanged, and of a data URL only its type is left.
    Passwords may hold slashes, as the secret keys of AWS do. Where a password's end is unclear, all
    of the URL after its scheme is left out.
    """
    if member := _MEMBER.match(url):
        return f"{member.group()}{redact(url[member.end() :])}"
    if _DATA.match(url):
        return f"{url.partition(',')[0]},..."
    if not is_url(url):
        return url
    return "::".join(_redact_link(link) for link in _CHAIN.split(url))


def redact_text(text: str) -> str:
    """A library's message with its URLs and the values of secret parameters redacted."""
    text = _DATA.sub(lambda match: redact(match.group()), text)
    text = _URL_IN_TEXT.sub(lambda match: redact(match.group()), text)
    return _PARAMETER.sub(r"\1...", text)


def error_text(error: BaseException) -> str:
    """The first line of an exception's message, redacted; its type if there is no message."""
    return redact_text(str(error)).strip().split("\n")[0] or type(error).__name__


def _redact_link(url: str) -> str:
    """One URL of a chain."""
    start, separator, rest = url.partition("://")
    if not separator or start.lower() == "file":
        return url
    shown = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority = shown.partition("/")[0]
    has_password = ":" in authority and (
        "@" in authority or start.lower() in _BUCKETS or not _PORT.fullmatch(authority)
    )
    if has_password and "@" in rest:
        ambiguous = shown.count("@") != 1 or rest.count("@") != 1
        return f"{start}://..." if ambiguous else f"{start}://{shown.partition('@')[2]}"
    user, at, _ = authority.rpartition("@")
    return f"{start}://{shown.removeprefix(user + at)}"
