"""Rewrites the small visible files of an output to few large ones, folder by folder.

The new files are written hidden. Then the journal names the folder, and its files are replaced:

exchange  A local folder is exchanged with a new one by one atomic step (folder_swap.py).
replace   On an object store, the old files of each new one are removed, then the new one appears.
          `_SUCCESS` is away meanwhile: rows may be missing for a moment, but are never doubled.

A kill at any point is repaired by `finish`, which the next run and the next compaction call.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger import folder_swap
from mediamill.pipeline.ledger.bitmaps import rows_of, text_of
from mediamill.pipeline.ledger.journal import (
    Journal,
    Merged,
    Mode,
    hidden_file,
    in_folder,
    read_journal,
    work_folder,
    write_journal,
)
from mediamill.pipeline.ledger.publish import REPLACED, SOURCES, WRITER_OPTIONS, visible_files
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.disk_room import needs_room
from mediamill.pipeline.storage.storage import Place

_THREADS = 8
_ROW_GROUP, _ROW_GROUP_BYTES = 65_536, 64 * 1024**2
_SUCCESS = "_SUCCESS"  # also recovery.SUCCESS, which is above this file
_NUMBER = re.compile(r"part-(\d{12})")


@dataclass(frozen=True)
class FileInfo:
    """A visible file. sources: names and rows of the files that were compacted to it.

    replaced: the retries that replaced rows, each with the positions of these (see rewrite.py).
    """

    name: str
    rows: int
    schema: pa.Schema
    sources: tuple[tuple[str, int], ...]
    replaced: tuple[tuple[str, str], ...] = ()


def compact(
    output: Place, rows_per_file: int, check: Callable[[], None]
) -> tuple[int, int, list[str], bool]:
    """Compacts all folders. The caller holds the lease on the output, and its log's fence.

    check: called before anything is replaced; raises when another run has begun.
    Returns the number of files before and after, the folders that were left as they are because
    they hold links or other folders, and whether readers saw each row at every moment.
    """
    check()
    finish(output)
    folders: dict[str, list[str]] = {}
    for path in visible_files(output):
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    before = after = 0
    skipped = []
    replaced: list[Journal] = []
    swap = atomic = folder_swap.can_swap(output)
    for folder, names in folders.items():
        before += len(names)
        infos = _infos(output, folder, names)
        infos = _without_copies(output, folder, infos, check)
        groups = _groups(infos, rows_per_file)
        after += len(infos)
        if not groups:
            continue
        if swap and folder and not folder_swap.is_plain(Path((output / folder).path)):
            skipped.append(folder)
            continue
        after -= sum(len(group) - 1 for group in groups)
        files = tuple(_merge(output, folder, group) for group in groups)
        check()
        number = read_journal(output).number
        mode: Mode = "exchange" if swap else "replace"
        journal = Journal(number + 1, folder, mode, files, _success(output, mode))
        write_journal(output, journal)
        atomic = _replace(output, journal) and atomic
        replaced.append(journal)
    _clean(output)
    _remove_late(output, replaced)
    return before, after, skipped, atomic


def finish(output: Place) -> None:
    """Finishes a compaction that was killed while it replaced files. May be repeated."""
    journal = read_journal(output)
    if journal.folder is not None:
        _replace(output, journal)
    folder_swap.remove_old(output, wait=True)


def file_info(place: Place, name: str) -> FileInfo:
    """Reads the footer of a Parquet file. Raises FileNotFoundError."""

    def read(fs: Any) -> FileInfo:
        with fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
            footer = parquet.metadata.metadata or {}
            noted = json.loads(footer.get(SOURCES, b"[]"))
            sources = tuple((str(one), int(rows)) for one, rows in noted)
            replaced = tuple((one, rows) for one, rows in json.loads(footer.get(REPLACED, b"[]")))
            schema = parquet.schema_arrow.remove_metadata()
            return FileInfo(name, parquet.metadata.num_rows, schema, sources, replaced)

    return storage.with_retries(place, read)


def _infos(output: Place, folder: str, names: Sequence[str]) -> list[FileInfo]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(
            threads.map(lambda name: file_info(output / in_folder(folder, name), name), names)
        )


def _without_copies(
    output: Place, folder: str, infos: Sequence[FileInfo], check: Callable[[], None]
) -> list[FileInfo]:
    """Removes files that a stale write task has published again after they were compacted."""
    replaced = {source for info in infos for source, _ in info.sources}
    copies = [info for info in infos if info.name in replaced]
    if copies:
        check()
        for info in copies:
            storage.remove(output / in_folder(folder, info.name))
    return [info for info in infos if info.name not in replaced]


def _groups(infos: Sequence[FileInfo], rows_per_file: int) -> list[list[FileInfo]]:
    """Returns neighbours that fit into one file together, two or more of them in each group."""
    groups: list[list[FileInfo]] = []
    rows = 0
    for info in infos:
        fits = groups and rows + info.rows <= rows_per_file
        if fits and groups[-1][0].schema.equals(info.schema):
            groups[-1].append(info)
            rows += info.rows
        else:
            groups.append([info])
            rows = info.rows
    return [group for group in groups if len(group) > 1]


def _merge(output: Place, folder: str, group: Sequence[FileInfo]) -> Merged:
    """Writes the hidden file of a group, unless an earlier compaction has written it."""
    names = tuple(info.name for info in group)
    sources = [one for info in group for one in (info.sources or ((info.name, info.rows),))]
    noted = json.dumps([folder, sources, *_replaced(group)]).encode()
    digest = hashlib.blake2b(noted, digest_size=8).hexdigest()
    number = _NUMBER.match(names[0])
    name = f"part-{number[1] if number else '0' * 12}-{digest}.parquet"
    target = hidden_file(output, name)
    if not storage.exists(target):
        with tempfile.TemporaryDirectory() as scratch, needs_room(Path(scratch), "a merged file"):
            path = Path(scratch) / "merged"
            with pq.ParquetWriter(path, group[0].schema, **WRITER_OPTIONS) as writer:
                for table in _row_groups(output, folder, names):
                    writer.write_table(table)
                writer.add_key_value_metadata({SOURCES.decode(): json.dumps(sources)})
                if replaced := _replaced(group):
                    writer.add_key_value_metadata({REPLACED.decode(): json.dumps(replaced)})
            storage.put_file(target, path)
    return Merged(name, names)


def _replaced(group: Sequence[FileInfo]) -> list[tuple[str, str]]:
    """Returns the replaced rows of the files, by their positions in the merged one."""
    replaced, start = [], 0
    for info in group:
        replaced += [(label, text_of(rows_of(text) + start)) for label, text in info.replaced]
        start += info.rows
    return replaced


def _row_groups(output: Place, folder: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yields the files' rows in their order, in tables of the size of a row group."""
    waiting: list[pa.Table] = []
    rows = size = 0
    for name in names:
        place = output / in_folder(folder, name)
        with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
            for number in range(parquet.num_row_groups):
                table = parquet.read_row_group(number).replace_schema_metadata(None)
                if waiting and (
                    rows + table.num_rows > _ROW_GROUP or size + table.nbytes > _ROW_GROUP_BYTES
                ):
                    yield pa.concat_tables(waiting).combine_chunks()
                    waiting, rows, size = [], 0, 0
                waiting.append(table)
                rows, size = rows + table.num_rows, size + table.nbytes
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _replace(output: Place, journal: Journal) -> bool:
    """Makes the journal's files visible instead of their sources. May be repeated.

    Returns whether readers saw each row at every moment.
    """
    if journal.mode == "exchange":
        try:
            folder_swap.swap(output, journal)
        except FileNotFoundError:  # another process finishes this, since a newer run has begun
            raise
        except OSError:  # the folder is mounted, for example
            success = _success(output, "replace")
            journal = replace(journal, mode="replace", success=success)
            write_journal(output, journal)
    if journal.mode == "replace":
        _replace_one_by_one(output, journal)
    for file in journal.files:
        storage.remove(hidden_file(output, file.name))
    write_journal(output, Journal(journal.number + 1))
    return journal.mode == "exchange"


def _replace_one_by_one(output: Place, journal: Journal) -> None:
    folder = journal.folder or ""
    storage.remove(output / _SUCCESS)
    with ThreadPoolExecutor(_THREADS) as threads:
        for file in journal.files:
            target = output / in_folder(folder, file.name)
            if not storage.exists(target):
                places = [output / in_folder(folder, source) for source in file.sources]
                list(threads.map(storage.remove, places))
                storage.move(hidden_file(output, file.name), target)
    if journal.success is not None:
        storage.put(output / _SUCCESS, journal.success.encode())


def _success(output: Place, mode: Mode) -> str | None:
    if mode != "replace" or not storage.exists(output / _SUCCESS):
        return None
    return storage.read(output / _SUCCESS).decode()


def _clean(output: Place) -> None:
    """Removes hidden files that were prepared by a killed compaction and are not needed now."""
    for name in storage.list_files(work_folder(output)):
        storage.remove(work_folder(output) / name)
    folder_swap.remove_old(output, wait=True)


def _remove_late(output: Place, replaced: Sequence[Journal]) -> None:
    """Removes files that a stale task has put back meanwhile, where it cannot be kept from it."""
    if replaced and not output.is_local:
        sources = {
            in_folder(journal.folder or "", source)
            for journal in replaced
            for file in journal.files
            for source in file.sources
        }
        for name in sources.intersection(visible_files(output)):
            storage.remove(output / name)
