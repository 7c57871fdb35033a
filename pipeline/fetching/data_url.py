"""Decodes `data:` URIs (RFC 2397), as forgiving as browsers: the medium is in the URI itself."""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from mediamill.schemas.errors import ErrorCode, RowError

_CHUNK_CHARACTERS = 4 * 256 * 1024  # of base64; a multiple of 4
_WHITE_SPACE = b"\t\n\f\r "
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")


@dataclass(frozen=True)
class DataContent:
    """The content of a `data:` URI. chunks: its `size` bytes, decoded while they are read."""

    size: int
    chunks: Iterator[bytes]


def decode_data_url(url: str, max_bytes: int) -> DataContent:
    """Returns the content of a URL that begins with "data:".

    Accepts base64 of both alphabets, with white space, percent signs and without padding.
    Raises RowError: fetch_failed for anything else, fetch_too_large before it is decoded.
    """
    header, comma, body = url.partition(",")
    if not comma:
        raise _failed("found no comma, expected data:image/png;base64,...")
    body = body.partition("#")[0]
    parameters = [part.strip().lower() for part in header.split(";")[1:]]
    try:
        if "base64" not in parameters:
            content = unquote_to_bytes(body)
            _check_size(len(content), max_bytes)
            return DataContent(len(content), iter((content,)))
        # At least this many bytes: white space may be most of a text, but not of a picture.
        text = unquote_to_bytes(body) if "%" in body else body.encode("ascii")
    except UnicodeEncodeError:
        raise _failed("found characters that are no base64") from None
    text = text.translate(_URL_SAFE, _WHITE_SPACE)
    text = _without_padding(text)
    size, rest = divmod(len(text) * 3, 4)
    _check_size(size, max_bytes)
    if rest == 3 or not _BASE64.fullmatch(text):  # one character is less than a byte
        raise _failed("found no valid base64 after the comma")
    return DataContent(size, _decode(text))


def _without_padding(text: bytes) -> bytes:
    stripped = text.rstrip(b"=")
    return stripped if len(text) - len(stripped) <= 2 else text


def _decode(text: bytes) -> Iterator[bytes]:
    for start in range(0, len(text), _CHUNK_CHARACTERS):
        chunk = text[start : start + _CHUNK_CHARACTERS]
        try:
            yield base64.b64decode(chunk + b"=" * (-len(chunk) % 4), validate=True)
        except binascii.Error:
            raise _failed("found no valid base64 after the comma") from None


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise RowError(
            ErrorCode.FETCH_TOO_LARGE,
            f"found {size} bytes, expected at most limits.max_bytes = {max_bytes}",
        )


def _failed(message: str) -> RowError:
    return RowError(ErrorCode.FETCH_FAILED, message)
