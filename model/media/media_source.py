"""Reads the bytes of a medium from a path, a URL or a data URL, if they are allowed."""

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
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class SourceRules:
    """What may be read.

    schemes: allowed URL schemes; "file" also allows paths, and "data" data URLs. For untrusted
        text, leave out "file", and "http" and "https" if they reach a private network.
    max_bytes: of one medium; a larger one is refused before memory is allocated.
    Raises ValueError for values that cannot be used.
    """

    schemes: tuple[str, ...] = SCHEMES
    max_bytes: int = 1024**3

    def __post_init__(self) -> None:
        if type(self.schemes) is not tuple:
            raise ValueError(f"schemes is {self.schemes!r:.80}, expected a tuple of texts")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}, expected at least 1")


def read_source(source: str | Path, rules: SourceRules) -> bytes:
    """Returns the whole content of a path, an fsspec URL or a data URL.

    Raises ValueError, in one sentence without secrets, for a scheme that is not allowed and for a
    file that is missing, empty, too large, not a regular file or otherwise unreadable.
    """
    text = str(source)
    url = None if isinstance(source, Path) else _SCHEME.match(text)
    scheme = url.group().lower() if url else "file"
    name = "a data URL" if scheme == "data" else redact(text)
    if scheme not in rules.schemes:
        allowed = ", ".join(rules.schemes) or "none"
        raise ValueError(f"{name:.200}: the scheme {scheme} is not allowed, expected {allowed}")
    if scheme == "data":
        return _decode_data_url(text, rules.max_bytes)
    if "::" in text and url:
        raise ValueError(f"{name:.200}: found a chain of URLs ('::'), expected one plain URL")
    try:
        if scheme == "file":
            content = _read_file(decoded_path(text) if url else Path(text).expanduser(), rules)
        else:
            content = _read_remote(text, rules)
    except _ReadError as error:
        raise ValueError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise ValueError(f"{name}: found no such file") from None
    except Exception as error:  # each fsspec driver has its own exceptions
        raise ValueError(f"{name} cannot be read: {error_text(error)}") from error
    if not content:
        raise ValueError(f"{name}: the file is empty")
    return content


def data_bytes(text: str, max_bytes: int) -> bytes:
    """Decodes base64 text, with or without white space. Raises ValueError."""
    text = "".join(text.split())
    if len(text) // 4 * 3 > max_bytes + 2:
        raise ValueError(f"found about {len(text) // 4 * 3} bytes, expected at most {max_bytes}")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"found no base64: {error}") from None
    _check_size(len(content), max_bytes)
    return content


class _ReadError(ValueError):
    """Why a source cannot be read; `read_source` adds its name."""


def _read_file(path: Path, rules: SourceRules) -> bytes:
    status = path.stat()
    # A pipe or a device may never end.
    if not stat.S_ISREG(status.st_mode):
        raise _ReadError("found a folder or device, expected a file")
    _check_size(status.st_size, rules.max_bytes)
    with path.open("rb") as file:
        return _read_bounded(file, rules.max_bytes)


def _read_remote(url: str, rules: SourceRules) -> bytes:
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    with fs.open(path, "rb") as file:
        size = getattr(file, "size", None)
        if isinstance(size, int):
            _check_size(size, rules.max_bytes)
        return _read_bounded(file, rules.max_bytes)


def _read_bounded(file: IO[bytes], max_bytes: int) -> bytes:
    content = bytearray()
    while chunk := file.read(_CHUNK_BYTES):
        content += chunk
        _check_size(len(content), max_bytes)
    return bytes(content)


def _decode_data_url(url: str, max_bytes: int) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise ValueError("found a data URL without a comma, expected data:image/png;base64,...")
    try:
        if header.lower().endswith(";base64"):
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
        raise _ReadError(f"found at least {size} bytes, expected at most {max_bytes}")
