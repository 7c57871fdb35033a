"""Splits http(s) URLs as browsers do (https://url.spec.whatwg.org), relative ones included.

White space around a URL, and tabs and line breaks in it, do not count; a backslash is a slash; what
a request cannot hold is percent-encoded; the fragment is not sent.
"""

import re
from dataclasses import dataclass

_SCHEME = re.compile(r"(https?):[/\\]*", re.IGNORECASE)
_ANY_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_ENDS = "".join(map(chr, range(0x21)))  # C0 controls and the space
_INSIDE = str.maketrans("", "", "\t\n\r")
# Of the visible ASCII characters; a percent sign stays, since it may be encoded already.
_ENCODED_IN_PATH, _ENCODED_IN_QUERY = '"#<>?^`{}', "\"#'<>"
_DOT, _DOT_DOT = re.compile(r"\.|%2e", re.I), re.compile(r"(\.|%2e){2}", re.I)


@dataclass(frozen=True)
class WebUrl:
    """The parts of a URL. authority: login, host and port. path: with the query, as it is sent."""

    scheme: str
    authority: str
    path: str


def clean_web_url(text: str) -> str | None:
    """Returns an absolute http(s) URL without what browsers ignore; None if it is no such URL."""
    text = text.strip(_ENDS).translate(_INSIDE)
    match = _SCHEME.match(text)
    if match is None:
        return None
    slashes = match[0].partition(":")[2]
    # Three slashes leave no host; a browser would take the first folder for it.
    host_start = "//" if len(slashes) <= 2 else "///"
    return f"{match[1].lower()}:{host_start}{_with_slashes(text[match.end() :])}"


def split_web_url(text: str) -> WebUrl | None:
    """Returns the parts of an absolute http(s) URL; None if it is no such URL."""
    url = clean_web_url(text)
    if url is None:
        return None
    scheme, _, rest = url.partition("://")
    return _split(scheme, rest)


def join_web_url(base: WebUrl, reference: str) -> WebUrl | None:
    """Returns the URL that a reference means on the page `base`; None if it is not http(s)."""
    text = _with_slashes(reference.strip(_ENDS).translate(_INSIDE))
    if match := _ANY_SCHEME.match(text):
        same_scheme = match[0][:-1].lower() == base.scheme
        if not same_scheme or text[match.end() :].startswith("//"):
            return split_web_url(text)
        text = text[match.end() :]
    text = text.partition("#")[0]
    if text.startswith("//"):
        return _split(base.scheme, text.lstrip("/"))
    base_path = base.path.partition("?")[0]
    if not text:
        return base
    if text.startswith("?"):
        text = base_path + text
    elif not text.startswith("/"):
        text = base_path.rpartition("/")[0] + "/" + text
    return WebUrl(base.scheme, base.authority, _path(text))


def _split(scheme: str, rest: str) -> WebUrl:
    end = re.search(r"[/?#]|$", rest)
    assert end is not None
    return WebUrl(scheme, rest[: end.start()], _path(rest[end.start() :].partition("#")[0]))


def _with_slashes(text: str) -> str:
    """Returns the text with slashes for backslashes, up to the query or fragment."""
    end = re.search(r"[?#]|$", text)
    assert end is not None
    return text[: end.start()].replace("\\", "/") + text[end.start() :]


def _path(text: str) -> str:
    path, mark, query = text.partition("?")
    kept: list[str] = []
    parts = path.removeprefix("/").split("/")
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if _DOT_DOT.fullmatch(part):
            kept[-1:] = []
        elif not _DOT.fullmatch(part):
            kept.append(part)
            continue
        if is_last:
            kept.append("")
    encoded = _percent_encode("/".join(kept), _ENCODED_IN_PATH)
    return f"/{encoded}{mark}{_percent_encode(query, _ENCODED_IN_QUERY)}"


def _percent_encode(text: str, signs: str) -> str:
    def encode(match: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "replace"))

    return re.sub(rf"[^\x21-\x7e]+|[{re.escape(signs)}]", encode, text)
