"""Fetches the media of rows for an export, and checks that they are still what was captioned."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.fetcher import Fetcher, FetchRules
from mediamill.pipeline.fetching.spool import Spool
from mediamill.schemas import columns as c
from mediamill.schemas.errors import RowError
from mediamill.schemas.job import FetchConfig, Limits

_AT_ONCE = 8
# Beginnings of files, with the usual extension. "ftyp" stands at byte 4 of MP4 and its relatives.
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\x1aE\xdf\xa3", "webm"),
)
_PICTURES = frozenset({"jpg", "png", "gif", "bmp", "tif", "webp", "avif", "heic"})


@dataclass(frozen=True)
class Medium:
    """The content of a row's one medium. extension: by its content, without a dot."""

    data: bytes
    extension: str


class MediaReader:
    """Fetches media with the rules of a job: allowed folders and hosts, sizes and times."""

    def __init__(self, roots: tuple[str, ...], hosts: tuple[str, ...] | None) -> None:
        """roots: folders that local files may lie in, beside the current one."""
        base = str(Path.cwd())
        config = FetchConfig(hosts=hosts)
        self._fetcher = Fetcher(FetchRules(config, Limits(), base, (*roots, base)))

    def read(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Medium | str]:
        """Yields the medium of each row, or why it has none: a code or a few words."""
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            yield from threads.map(self._read, rows)

    def read_pictures(
        self, rows: Iterable[Mapping[str, Any]], left_out: Counter[str]
    ) -> Iterator[tuple[int, Medium]]:
        """Yields the index and the picture of each row that has one; counts the others' reasons."""
        for index, medium in enumerate(self.read(rows)):
            if isinstance(medium, str):
                left_out[medium] += 1
            elif medium.extension not in _PICTURES:
                left_out["not a picture"] += 1
            else:
                yield index, medium

    def _read(self, row: Mapping[str, Any]) -> Medium | str:
        uri = the_uri(row)
        if isinstance(uri, Problem):
            return uri.reason
        if not row.get(c.SHA256):
            return "no hash of the media"
        try:
            medium = self._fetcher.fetch(uri, Reservation(self._fetcher.budget))
        except RowError as error:
            return str(error.code)
        if medium.data is not None:
            data = np.ascontiguousarray(medium.data).tobytes()
        else:
            assert medium.path is not None
            try:
                data = medium.path.read_bytes()
            finally:
                Spool.release([medium.path])
        if hashlib.sha256(data).hexdigest() != row[c.SHA256]:
            return "media changed since"
        return Medium(data, _extension(data, uri))


@dataclass(frozen=True)
class Problem:
    """Why a row has no one medium that its text belongs to."""

    reason: str


def the_uri(row: Mapping[str, Any]) -> str | Problem:
    """Returns the URI of the one medium that the row's text is about."""
    if row.get(c.URI):
        return str(row[c.URI])
    media = row.get(c.MEDIA) or []
    if len(media) != 1:
        return Problem("several media" if media else "no media")
    if media[0].get(c.MEDIA_START_S) is not None or media[0].get(c.MEDIA_END_S) is not None:
        return Problem("part of a video")
    return str(media[0][c.MEDIA_URI])


def _extension(data: bytes, uri: str) -> str:
    for magic, extension in _MAGIC:
        if data.startswith(magic):
            return extension
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return {b"avif": "avif", b"heic": "heic", b"mif1": "heic", b"qt  ": "mov"}.get(brand, "mp4")
    suffix = uri.partition("?")[0].rpartition(".")[2].lower()
    return suffix if suffix.isalnum() and len(suffix) <= 5 else "bin"
