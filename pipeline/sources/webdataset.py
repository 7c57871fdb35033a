"""Lists the members of WebDataset tar shards in place, by one pass over their headers.

Consecutive members with the same name up to the first dot after the last slash belong together: the
texts of a group become columns of each of its media.
"""

import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import pyarrow as pa

from mediamill.pipeline.sources import media_names, uris
from mediamill.pipeline.sources.ids import Repeats, readable
from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.pipeline.sources.media_names import HIDDEN, OTHER, NameFilter
from mediamill.pipeline.sources.random_access import RandomAccessFile, TooLongError
from mediamill.pipeline.sources.unit import BATCH_ROWS, Source, Unit, tables, unclash
from mediamill.pipeline.storage import file_version
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError

KEY = "key"
_TEXTS = ("txt", "json", "cls", "caption", "text")  # suffixes of members that become columns
_MAX_TEXT_BYTES = 1024 * 1024
_MAX_GROUP = 1000  # media that wait for the texts of their group
_SAMPLE_SHARDS, _SAMPLE_MEMBERS = 3, 1000
_DAMAGED = "the archive is damaged or cut off after this member"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass
class _Group:
    """Members with the same key. media: name, first byte and size of each."""

    key: str | None = None
    media: list[tuple[str, int, int]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


def list_shards(
    root: str, shards: Sequence[tuple[str, Place]], names: NameFilter, columns: Sequence[str] | None
) -> Source:
    """Returns the source of all members of tar files. root: what contains them, as a URL.

    shards: the name and place of each. columns: the texts that earlier runs made columns of; None:
    those of the first shards. Raises JobError.
    """
    if columns is None:
        columns = _text_columns(shards)
    schema = pa.schema(
        [(name, pa.string()) for name in (c.ID, c.URI, KEY, *_column_names(columns))]
    )
    chosen = tuple(columns)

    def unit(name: str, place: Place) -> Unit:
        def read(left_out: LeftOut) -> Iterator[pa.Table]:
            return tables(_rows(name, place, names, chosen, left_out), schema)

        return Unit(readable(name), file_version.file_version(place), read, frozen=True)

    units = (unit(*shard) for shard in shards)
    settings = {"texts": list(chosen)}
    return Source("WebDataset", root, schema, units, settings, archives=root)


def _column_names(columns: Iterable[str]) -> list[str]:
    return [unclash(name) for name in columns]


def _text_columns(shards: Sequence[tuple[str, Place]]) -> list[str]:
    found: set[str] = set()
    for name, place in shards[:_SAMPLE_SHARDS]:
        members = _members(name, place, LeftOut())
        for _, member in zip(range(_SAMPLE_MEMBERS), members, strict=False):
            found.add(_split(member.name)[1])
    return [suffix for suffix in _TEXTS if suffix in found]


def _rows(
    shard: str,
    place: Place,
    names: NameFilter,
    columns: Sequence[str],
    left_out: LeftOut,
) -> Iterator[tuple[str | None, ...]]:
    url, repeats = uris.uri_of(place.url), Repeats()
    waiting: list[tuple[str, tuple[str | None, ...]]] = []

    def flush(group: _Group) -> None:
        texts = [group.texts.get(column) for column in columns]
        for name, first, size in group.media:
            row = (uris.member(url, first, size), readable(group.key or ""), *texts)
            waiting.append((f"{readable(shard)}/{readable(name)}", row))

    def numbered() -> Iterator[tuple[str | None, ...]]:
        ids = repeats.number([key for key, _ in waiting])
        yield from ((key, *row) for key, (_, row) in zip(ids, waiting, strict=True))
        waiting.clear()

    group = _Group()
    with RandomAccessFile(place) as file:
        for member in _members(shard, place, left_out, file):
            key, suffix = _split(member.name)
            if key != group.key or len(group.media) >= _MAX_GROUP:
                flush(group)
                group = _Group(key)
                if len(waiting) >= BATCH_ROWS:
                    yield from numbered()
            example = f"{shard}/{member.name}"
            reason = _reason(member, names, suffix in columns)
            if reason:
                left_out.add(reason, example)
            elif reason is None and suffix in columns:
                group.texts[suffix] = _read_text(file, member)
            elif reason is None:
                group.media.append((member.name, member.offset_data, member.size))
    flush(group)
    yield from numbered()


def _reason(member: tarfile.TarInfo, names: NameFilter, is_text: bool) -> str | None:
    """Why a member is left out; empty for one that is not meant, None for one that is not."""
    if member.isdir():
        return ""
    if member.issym() or member.islnk():
        return "a link in an archive"
    if member.sparse is not None:
        return "a sparse member, whose bytes are not in one piece"
    if not member.isreg():
        return "a device or pipe in an archive"
    if media_names.is_hidden_path(member.name):
        return HIDDEN
    if is_text:
        if member.size > _MAX_TEXT_BYTES:
            return f"a text of more than {_MAX_TEXT_BYTES} bytes"
        return None
    reason = names.reason(member.name)
    if reason == OTHER and _split(member.name)[1] in _TEXTS:
        return "a text whose suffix the first shards do not have"
    if reason is None and member.size <= 0:
        return "an empty member"
    return reason


def _split(name: str) -> tuple[str, str]:
    """The key and the suffix of a member, as the webdataset library splits them."""
    folder, base = posixpath.split(name)
    stem, _, suffix = base.partition(".")
    return posixpath.join(folder, stem), suffix.lower()


def _read_text(file: RandomAccessFile, member: tarfile.TarInfo) -> str:
    file.seek(member.offset_data)
    return file.read(member.size).decode("utf-8-sig", "replace").strip()


def _members(
    shard: str, place: Place, left_out: LeftOut, file: RandomAccessFile | None = None
) -> Iterator[tarfile.TarInfo]:
    """Yields the members whose bytes are all there. Counts a damaged end. Raises JobError."""
    file = file or RandomAccessFile(place)
    try:
        tar = tarfile.TarFile(
            fileobj=cast("tarfile._Fileobj", file), mode="r", errors="surrogateescape"
        )
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if file.size == 0:
            left_out.add("an empty file", shard)
        else:
            left_out.add(f"no tar archive ({error})", shard)
        return
    last, end = "", -1
    try:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # they would all stay in memory
            if tar.offset <= end or member.size < 0:
                raise tarfile.ReadError("a member ends before it begins")
            end = tar.offset
            is_sparse = member.sparse is not None
            if not is_sparse and member.offset_data + member.size > file.size:
                raise tarfile.ReadError("unexpected end")
            yield member
            last = member.name
        # tarfile stops at a damaged header as if it were the end.
        file.seek(tar.offset)
        damaged = file.read(tarfile.BLOCKSIZE).strip(b"\0") != b""
    except (tarfile.TarError, TooLongError, ValueError, OverflowError, IndexError):
        damaged = True
    if damaged:
        left_out.add(_DAMAGED, f"{shard}/{last}")


def refuse_compressed(name: str, shown: str) -> None:
    """Raises JobError for a tar file whose members have no addresses."""
    if name.lower().endswith(COMPRESSED):
        raise JobError(
            f"{shown}: found a compressed tar archive, expected a plain one: members of a "
            "compressed one cannot be read in place; decompress it"
        )
