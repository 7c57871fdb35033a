"""The URI of a part of a file: a member of an archive, by its bytes in the archive.

    range:1536-98303:s3://bucket/shard-000.tar              bytes FIRST to LAST, both inclusive
    range:70-4165;deflate;size=9000:/data/pictures.zip      deflated bytes, and what they become

The URL after the last colon of the prefix is that of the whole file.
"""

import re
from dataclasses import dataclass

from mediamill.schemas.errors import ErrorCode, RowError

_PREFIX = re.compile(r"range:", re.IGNORECASE)
_FORM = re.compile(
    r"range:([0-9]{1,18})-([0-9]{1,18})(;deflate)?(?:;size=([0-9]{1,18}))?:(.+)",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)
_EXPECTED = "range:FIRST-LAST:URL, or range:FIRST-LAST;deflate;size=BYTES:URL"


@dataclass(frozen=True)
class MemberUri:
    """Some bytes of a file.

    url: of the whole file.
    first, last: offsets of the first and the last byte, as in an HTTP range.
    inflated_size: None for bytes that are the medium itself; for bytes that are deflated (RFC
        1951), the size of what they become.
    """

    url: str
    first: int
    last: int
    inflated_size: int | None = None

    @property
    def size(self) -> int:
        """The number of bytes in the file."""
        return self.last + 1 - self.first

    def __str__(self) -> str:
        packed = "" if self.inflated_size is None else f";deflate;size={self.inflated_size}"
        return f"range:{self.first}-{self.last}{packed}:{self.url}"


def parse_member_uri(uri: str) -> MemberUri | None:
    """Returns the parts of a member's URI; None for any other URI. Raises RowError, fetch_denied"""
    if not _PREFIX.match(uri):
        return None
    match = _FORM.fullmatch(uri)
    if match is None or (match[3] is None) != (match[4] is None):
        raise RowError(ErrorCode.FETCH_DENIED, f"found another form of range, expected {_EXPECTED}")
    first, last, url = int(match[1]), int(match[2]), match[5]
    if first > last:
        raise RowError(
            ErrorCode.FETCH_DENIED, f"found the range {first}-{last}, expected FIRST up to LAST"
        )
    if _PREFIX.match(url):
        raise RowError(ErrorCode.FETCH_DENIED, "found a range of a range, expected one of a file")
    return MemberUri(url, first, last, int(match[4]) if match[4] else None)
