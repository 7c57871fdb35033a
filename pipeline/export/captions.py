"""Captions for a WebDataset that exists: a tar file of texts for each of its tar files.

Shards have the names of the source's, and members the keys and the order of the source's, so that a
trainer can read both at once. Rows come in any order: they wait in hidden parts, and the shards are
written at the end of each call.
"""

import contextlib
import io
import json
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from mediamill.pipeline.export.formats import ExportContext, RowFile
from mediamill.pipeline.export.media import Problem, the_uri
from mediamill.pipeline.export.parquet import media_columns
from mediamill.pipeline.export.sidecar import relative_path
from mediamill.pipeline.export.state import HIDDEN
from mediamill.pipeline.export.values import file_key, rows_of, to_json
from mediamill.pipeline.fetching.member_uri import MemberUri, parse_member_uri
from mediamill.pipeline.sources.webdataset import KEY
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.errors import RowError

_LIST = f"{HIDDEN}/shards.json"
# Of several media with one key, the first has the file of that name.
_INSERT = """
    INSERT INTO rows VALUES (?, ?, ?, ?, ?) ON CONFLICT (shard, key) DO UPDATE
    SET first = excluded.first, text = excluded.text, json = excluded.json
    WHERE excluded.first < first
"""


def tar_member(uri: str | Problem) -> MemberUri | None:
    """Returns what a URI names if that is a member of a tar file."""
    if isinstance(uri, Problem):
        return None
    with contextlib.suppress(RowError):
        member = parse_member_uri(uri)
        if member is not None and member.url.partition("?")[0].lower().endswith(".tar"):
            return member
    return None


class CaptionParts(RowFile):
    """Rows that wait for the other rows of their shards."""

    def __init__(self, context: ExportContext, number: int, scratch: Path) -> None:
        super().__init__(f"{HIDDEN}/captions-{number:06}.part", scratch / "part")
        self._context = context

    def add(self, table: pa.Table) -> None:
        context = self._context
        needed = {*context.columns, context.text, KEY, *media_columns(table.schema)}
        for row in rows_of(table.select([name for name in table.schema.names if name in needed])):
            member = tar_member(the_uri(row))
            shard = member and relative_path(member.url, context.roots)
            if member is None or shard is None:
                self.left_out["not in a tar file"] += 1
                continue
            text = row.get(context.text)
            values = to_json({name: row[name] for name in context.columns})
            line = [
                shard,
                member.first,
                str(row.get(KEY) or file_key(row[c.ID])),
                None if text is None else str(text),
                values,
            ]
            self.write(f"{json.dumps(line)}\n".encode())


def write_shards(parts: Iterable[Path], target: Place) -> None:
    """Writes the tar files of all parts, each atomically. Rows are sorted on disk."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = sqlite3.connect(Path(scratch) / "rows", isolation_level=None)
        with contextlib.closing(rows):
            rows.execute("PRAGMA journal_mode = OFF")
            rows.execute("CREATE TABLE rows (shard, first, key, text, json, UNIQUE (shard, key))")
            rows.execute("BEGIN")
            for part in parts:
                with part.open("rb") as lines:
                    rows.executemany(_INSERT, map(json.loads, lines))
            rows.execute("COMMIT")
            shards = [name for (name,) in rows.execute("SELECT DISTINCT shard FROM rows")]
            storage.put(target / _LIST, json.dumps(shards).encode())
            for shard in shards:
                path = Path(scratch) / "tar"
                _write_tar(path, rows, shard)
                storage.put_file(target / shard, path)


def remove_shards(target: Place) -> None:
    """Removes the tar files that an earlier export has written."""
    with contextlib.suppress(FileNotFoundError):
        for shard in json.loads(storage.read(target / _LIST)):
            storage.remove(target / shard)


def _write_tar(path: Path, rows: sqlite3.Connection, shard: str) -> None:
    query = "SELECT key, text, json FROM rows WHERE shard = ? ORDER BY first"
    with tarfile.TarFile(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, text, values in rows.execute(query, [shard]):
            for name, content in _members(key, text, values):
                entry = tarfile.TarInfo(name)  # its time is 0: the same rows give the same bytes
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))


def _members(key: str, text: str | None, values: str) -> Iterator[tuple[str, bytes]]:
    if text is not None:
        yield f"{key}.txt", text.encode(errors="replace")
    yield f"{key}.json", values.encode(errors="replace")
