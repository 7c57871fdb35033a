"""Text files beside the pictures, as trainers of image models read them: photo.jpg, photo.txt.

A file that exists is left as it is, unless this export or an earlier one to the same target wrote
it, or its content is the same. Two rows with one file are told: the first one has it.
"""

import hashlib
import posixpath
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.pipeline.export.formats import ExportContext
from mediamill.pipeline.export.media import Problem, the_uri
from mediamill.pipeline.export.values import rows_of, to_json
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c

_THREADS = 16


class Record:
    """What was written, by name: the row's id and the content's hash. It lies on disk."""

    def __init__(self, entries: Iterable[tuple[str, str, str]] = ()) -> None:
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._file.execute("CREATE TABLE files (name TEXT PRIMARY KEY, id TEXT, hash TEXT)")
        for entry in entries:
            self.add(*entry)

    def add(self, name: str, row_id: str, digest: str) -> None:
        """Adds a file, or replaces its entry."""
        values = [_key(name), _key(row_id), digest]
        self._file.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", values)

    def get(self, name: str) -> tuple[str, str] | None:
        """Returns the id and the hash of a file."""
        query = "SELECT id, hash FROM files WHERE name = ?"
        found = self._file.execute(query, [_key(name)]).fetchone()
        return None if found is None else (str(found[0]), str(found[1]))


class Sidecars:
    """Some rows' files, which appear one by one."""

    def __init__(self, context: ExportContext, record: Record) -> None:
        self.rows, self.size = 0, 0
        self.left_out: Counter[str] = Counter()
        self.written: list[tuple[str, str, str]] = []
        self._context, self._record = context, record

    def add(self, table: pa.Table) -> None:
        context = self._context
        needed = {*context.columns, context.text, c.ID, c.URI, c.MEDIA}
        rows = rows_of(table.select([name for name in table.schema.names if name in needed]))
        tasks = []
        for row in rows:
            name, data = self._name(row), self._content(row)
            if isinstance(name, Problem) or data is None:
                self.left_out[name.reason if isinstance(name, Problem) else "no text"] += 1
                continue
            known, row_id = self._record.get(name), _key(str(row[c.ID]))
            if known is not None and known[0] not in (row_id, ""):
                self.left_out["another row has the same file"] += 1
                continue
            digest = hashlib.sha256(data).hexdigest()
            tasks.append((name, data, known[1] if known else None))
            self._record.add(name, row_id, digest)
        with ThreadPoolExecutor(_THREADS) as threads:
            for (name, data, _), problem in zip(
                tasks, threads.map(lambda task: self._write(*task), tasks), strict=True
            ):
                if problem:
                    self.left_out[problem] += 1
                    continue
                known = self._record.get(name)
                assert known is not None
                self.written.append((name, *known))
                self.rows, self.size = self.rows + 1, self.size + len(data)

    def close(self) -> list[tuple[str, Path]]:
        return []

    def _write(self, name: str, data: bytes, own: str | None) -> str | None:
        place = self._context.target / name
        try:
            found = storage.read(place)
        except FileNotFoundError:
            found = None
        except (IsADirectoryError, NotADirectoryError):
            return "a folder has the name of the file"
        if found == data:
            return None
        is_own = found is None or (own is not None and hashlib.sha256(found).hexdigest() == own)
        if not is_own and not self._context.overwrite:
            return "a file of someone else exists"
        try:
            storage.put(place, data)
        except OSError as error:
            return f"cannot be written: {type(error).__name__}"
        return None

    def _content(self, row: Mapping[str, Any]) -> bytes | None:
        if self._context.sidecar == "json":
            values = {name: row[name] for name in self._context.columns}
            return f"{to_json(values)}\n".encode(errors="replace")
        text = row.get(self._context.text)
        return None if text is None else str(text).encode(errors="replace")

    def _name(self, row: Mapping[str, Any]) -> str | Problem:
        uri = the_uri(row)
        if isinstance(uri, Problem):
            return uri
        relative = relative_path(uri, self._context.roots)
        if relative is None:
            return Problem("no file name in the uri")
        folder, _, name = relative.rpartition("/")
        stem = name.rpartition(".")[0] or name
        return f"{folder}/{stem}.{self._context.sidecar}".lstrip("/")


def relative_path(uri: str, roots: tuple[str, ...]) -> str | None:
    """Returns the path of a medium below the first root that it lies in, else its whole path.

    It never leads out of a folder that it is joined to. None if the URI names no file.
    """
    if "\0" in uri or uri.lower().startswith(("data:", "range:")):
        return None
    if storage.scheme(uri) == "file":
        path = storage.absolute(uri)
    else:
        plain = uri.partition("#")[0].partition("?")[0]
        scheme, _, rest = plain.partition("://")
        path = f"{scheme}://{posixpath.normpath('/' + rest).lstrip('/')}"
    for root in roots:
        if path.startswith(f"{root.rstrip('/')}/"):
            path = path[len(root.rstrip("/")) + 1 :]
            break
    rest = path.partition("://")[2] if "://" in path else path
    clean = posixpath.normpath("/" + rest).lstrip("/")
    if (
        not clean
        or clean.endswith("/")
        or any(len(p.encode(errors="replace")) > 240 for p in clean.split("/"))
    ):
        return None
    return clean


def _key(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
