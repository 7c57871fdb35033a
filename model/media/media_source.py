"""Turns what names a medium, a path, a URL or a data URL, into its bytes.

Nothing is read that is not allowed, nor beyond a ceiling. What the bytes are is not known here.
"""

import base64
import binascii
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, unquote_to_bytes

import fsspec

from mediamill.model.urls import decoded_path, error_text, redact

SCHEMES = ("file", "http", "https", "s3", "gs", "hf", "data")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)(?=://|::)|data(?=:)", re.IGNORECASE)
_CHUNK = 1024 * 1024  # bytes that are read at once of a file whose size is not known


@dataclass(frozen=True)
class SourceRules:
    """What may be read.

    schemes: of URLs; "file" stands for paths too, and "data" for data URLs. Text that comes from
        strangers should be allowed neither "file" nor addresses of one's own network.
    max_bytes: of one medium; more is refused before memory is taken.
    """

    schemes: tuple[str, ...] = SCHEMES
    max_bytes: int = 1024**3

    def __post_init__(self) -> None:
        if type(self.schemes) is not tuple:
            raise ValueError(f"schemes is {self.schemes!r:.80}, expected a tuple of texts")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}, expected at least 1")


def read_source(source: str | Path, rules: SourceRules) -> bytes:
    """The whole content of a path, of an fsspec URL or of a data URL.

    Raises ValueError, in one sentence without what may be secret: for a scheme that is not allowed,
    a file that is missing, too large or no plain file, and whatever else keeps it from being read.
    """
    text = str(source)
    found = None if isinstance(source, Path) else _SCHEME.match(text)
    scheme = found.group().lower() if found else "file"
    name = "a data URL" if scheme == "data" else redact(text)
    if scheme not in rules.schemes:
        allowed = ", ".join(rules.schemes) or "none"
        raise ValueError(f"{name:.200}: the scheme {scheme} is not allowed, expected {allowed}")
    if scheme == "data":
        return _data(text, rules.max_bytes)
    if "::" in text and found:
        raise ValueError(f"{name:.200}: found a chain of URLs ('::'), expected one plain URL")
    try:
        if scheme == "file":
            content = _local(decoded_path(text) if found else Path(text).expanduser(), rules)
        else:
            content = _remote(text, rules)
    except _Refusal as error:
        raise ValueError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise ValueError(f"{name}: found no such file") from None
    except Exception as error:  # each driver has its own
        raise ValueError(f"{name} cannot be read: {error_text(error)}") from error
    if not content:
        raise ValueError(f"{name}: the file is empty")
    return content


def data_bytes(text: str, max_bytes: int) -> bytes:
    """The bytes of base64. Raises ValueError."""
    text = "".join(text.split())
    if len(text) // 4 * 3 > max_bytes + 2:
        raise ValueError(f"found about {len(text) // 4 * 3} bytes, expected at most {max_bytes}")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"found no base64: {error}") from None
    _check_size(len(content), max_bytes)
    return content


class _Refusal(ValueError):
    """A sentence that says why, to go behind the name of the source."""


def _local(path: Path, rules: SourceRules) -> bytes:
    facts = path.stat()
    # A pipe or a device could be read for ever.
    if not stat.S_ISREG(facts.st_mode):
        raise _Refusal("found a folder or device, expected a file")
    _check_size(facts.st_size, rules.max_bytes)
    with path.open("rb") as file:
        return _bounded(file, rules.max_bytes)


def _remote(url: str, rules: SourceRules) -> bytes:
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    with fs.open(path, "rb") as file:
        size = getattr(file, "size", None)
        if isinstance(size, int):
            _check_size(size, rules.max_bytes)
        return _bounded(file, rules.max_bytes)


def _bounded(file: IO[bytes], max_bytes: int) -> bytes:
    content = bytearray()
    while part := file.read(_CHUNK):
        content += part
        _check_size(len(content), max_bytes)
    return bytes(content)


def _data(url: str, max_bytes: int) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise ValueError("found a data URL without a comma, expected data:image/png;base64,...")
    try:
        if head.lower().endswith(";base64"):
            content = data_bytes(unquote(body) if "%" in body else body, max_bytes)
        else:
            if len(body) // 3 > max_bytes:
                raise ValueError(f"found more than {max_bytes} bytes")
            content = unquote_to_bytes(body)
            _check_size(len(content), max_bytes)
    except ValueError as error:
        raise ValueError(f"a data URL: {error}") from None
    if not content:
        raise ValueError("a data URL: it is empty")
    return content


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise _Refusal(f"found at least {size} bytes, expected at most {max_bytes}")
