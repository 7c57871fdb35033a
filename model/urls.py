"""Recognizes URLs, and removes secrets from them and from the messages of libraries.

Every message, log line and result that names a file or a server goes through `redact` or
`redact_text`; what a row, a log or a terminal gets goes through `safe_text`.
"""

import re
from pathlib import Path
from urllib.parse import unquote

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(?:://|::)")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.:-]*)://")
_FILE = re.compile(r"file:(//(localhost(?=/|$))?|(?=/(?!/)))", re.IGNORECASE)
_MEMBER = re.compile(r"range:[^:]{0,80}:", re.IGNORECASE)  # before the URL of a whole file
_DATA = re.compile(r"data:[^,\s]{0,80},(?!\.\.\.)[^\s'\"<>]*", re.IGNORECASE)  # not yet redacted
# A chain such as zip://a.jpg::https://host/b.zip or simplecache::s3://bucket/a.
_CHAIN = re.compile(r"::(?=[a-zA-Z][a-zA-Z0-9+.-]*(?:://|::))")
_PORT = re.compile(r"[^:]*:\d*|\[[^\]]*\](:\d*)?")
# In these URLs a bucket stands in place of the host, so digits after a colon are no port.
_BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs", "hf", "az", "abfs", "abfss", "adl", "oss")
# Begins only where a run of such characters does: time is linear in the text.
_URL_IN_TEXT = re.compile(r"(?<![a-zA-Z0-9+.-])[a-zA-Z0-9+.-]+://[^\s'\"<>]+")
# A URL in the path or among the words of another one.
_NESTED = re.compile(r"(?<![a-zA-Z0-9+.-])[a-zA-Z][a-zA-Z0-9+.-]*(?:://|%3a%2f%2f)", re.IGNORECASE)
_WORDS = (
    r"[\w-]*(?:token|secret|passw(?:or)?d|passphrase|signature|credential|api[_-]?key|access"
    r"[_-]?key(?:[_-]?id)?|account[_-]?key)"
)
_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?<![\w-])((?:{_WORDS}|sig)\s*=\s*[\"']?)[^\s&'\"<>]+",
        rf"([\"'](?:{_WORDS}|authorization)[\"']\s*:\s*[\"']?)[^\s,'\"<>}}]+",
        r"(?<![\w-])((?:authorization:\s*)?(?:bearer|basic)\s+)[\w+/=.~-]{8,}",
        r"\b((?:AKIA|ASIA))[A-Z0-9]{12,}\b",
        # What is left of a URL that was taken for a path: one of its slashes is gone.
        r"(?<![\w+.-])([a-z][a-z0-9+.-]{1,20}:/)(?!/)[^\s/:@\"'<>]*:[^\s@\"'<>]+(?=@)",
    )
)
MAX_MESSAGE = 2000  # characters of any message
_REDACTED = 20 * MAX_MESSAGE  # of a text, after its data URLs: nothing later is shown


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
    text = _URL_IN_TEXT.sub(lambda match: _redact_word(match.group()), text)
    for pattern in _SECRETS:
        text = pattern.sub(r"\1...", text)
    return text


def safe_text(text: str, limit: int = MAX_MESSAGE) -> str:
    """A message as it may be stored and printed.

    Redacted, then cut to `limit` characters; what no UTF-8 can hold (half a surrogate pair) becomes
    a question mark.
    """
    text = _DATA.sub(lambda match: redact(match.group()), text)
    if len(text) > _REDACTED:
        # Half a URL might show what the whole one would not.
        text = text[:_REDACTED].rpartition(" ")[0] or text[:limit]
    text = redact_text(text).encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def error_text(error: BaseException) -> str:
    """The first line of an exception's message, redacted; its type if there is no message."""
    return safe_text(str(error)).strip().split("\n")[0] or type(error).__name__


def _redact_word(word: str) -> str:
    """A run of characters without spaces that holds a URL, and may end with the sentence's own."""
    start = len(word) - len(word.lstrip("0123456789+.-"))
    end = len(word.rstrip(":,;.)"))
    return word[:start] + redact(word[start:end]) + word[end:]


def _redact_link(url: str) -> str:
    """One URL of a chain, and those in its path."""
    start, separator, rest = url.partition("://")
    if not separator or start.lower() == "file":
        return url
    shown = re.split(r"[?#]", rest, maxsplit=1)[0]
    nested = _NESTED.search(shown)
    if nested is not None:
        first = _redact_plain(start, shown[: nested.start()], shown[: nested.start()])
        if first.endswith("...") or "%" in nested.group():
            return first if first.endswith("...") else f"{first}..."
        return first + _redact_link(rest[nested.start() :])
    return _redact_plain(start, shown, rest)


def _redact_plain(start: str, shown: str, rest: str) -> str:
    """A URL without its user and password. rest: what follows `://`. shown: without the query."""
    authority = shown.partition("/")[0]
    has_password = ":" in authority and (
        "@" in authority or start.lower() in _BUCKETS or not _PORT.fullmatch(authority)
    )
    if has_password:
        ambiguous = shown.count("@") != 1 or rest.count("@") != 1
        return f"{start}://..." if ambiguous else f"{start}://{shown.partition('@')[2]}"
    if "%40" in authority:
        return f"{start}://..."
    user, at, _ = authority.rpartition("@")
    return f"{start}://{shown.removeprefix(user + at)}"
