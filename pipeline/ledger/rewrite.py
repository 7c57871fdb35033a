"""Puts the new rows of a retry in the place of the old ones, in the visible file that holds these.

The file is written again, hidden, and takes the place of the old one by one rename (one put on an
object store): readers see all old rows of it or all new ones. Its footer names the replacements, so
that one that is repeated changes nothing.
"""

import hashlib
import json
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.bitmaps import text_of
from mediamill.pipeline.ledger.publish import (
    REPLACED,
    WHOLE,
    WRITER_OPTIONS,
    Contents,
    merged,
    staged,
)
from mediamill.pipeline.ledger.state import Group, Part, VisibleFile
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import convert_table, parquet_options, take_rows


@dataclass(frozen=True)
class _Hidden:
    """A file that is written and not visible yet."""

    path: Path | None  # to be put, on an object store
    place: Place | None  # to be renamed, on a disk
    file: VisibleFile


def rewrite(
    output: Place,
    replacements: Mapping[str, Sequence[Part]],
    contents: Contents,
    check: Callable[[], None],
) -> dict[str, VisibleFile]:
    """Puts the rows of the parts in their places in these visible files. May be repeated.

    check: called right before a file is replaced; raises when another run has begun.
    Returns the files as they are now. A file that is gone has the new rows only.
    """
    files = {}
    for name, parts in replacements.items():
        with tempfile.TemporaryDirectory() as scratch:
            hidden = _write(output, name, parts, contents, Path(scratch) / "whole")
            files[name] = hidden.file
            check()
            if hidden.place is not None:
                storage.move(hidden.place, output / name)
            elif hidden.path is not None:
                storage.put_file(output / name, hidden.path)
    return files


def _write(
    output: Place, name: str, parts: Sequence[Part], contents: Contents, path: Path
) -> _Hidden:
    """Writes the file anew. Neither path nor place is given if it has these rows already."""
    target = output / name
    label = _label(parts)
    size = storage.size(target)
    if size is not None:
        with _opened(target) as old:
            metadata = old.metadata.metadata or {}
            noted = json.loads(metadata.get(REPLACED, b"[]"))
            if any(entry[0] == label for entry in noted):
                return _Hidden(None, None, VisibleFile(old.metadata.num_rows, size))
            rows = _merge(path, old, merged(Group(name, tuple(parts)), contents), label, noted)
    else:
        table = merged(Group(name, tuple(parts)), contents).drop_columns([c.ROW])
        with pq.ParquetWriter(path, table.schema, **_options(table.schema)) as writer:
            writer.write_table(table)
        rows = table.num_rows
    file = VisibleFile(rows, path.stat().st_size)
    if not output.is_local:
        return _Hidden(path, None, file)
    whole = staged(output) / f"{uuid.uuid4().hex}{WHOLE}"
    storage.put_file(whole, path)
    return _Hidden(None, whole, file)


def _opened(place: Place) -> Any:
    return pq.ParquetFile(place.fs.open(place.path, "rb"))


def _options(schema: pa.Schema) -> dict[str, Any]:
    return {**parquet_options(schema), **WRITER_OPTIONS}


def _label(parts: Iterable[Part]) -> str:
    text = json.dumps(sorted((part.token, part.offset) for part in parts))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _merge(path: Path, old: pq.ParquetFile, new: pa.Table, label: str, noted: list[Any]) -> int:
    """Writes the old file's rows with the new ones in their places. Returns the number of rows.

    New rows whose old ones are gone come last. Row groups and footer stay.
    """
    schema = old.schema_arrow
    new = convert_table(new, schema.remove_metadata())
    left = {row_id: number for number, row_id in enumerate(new[c.ID].to_pylist())}
    positions: list[int] = []
    rows = 0
    with pq.ParquetWriter(path, schema, **_options(schema)) as writer:
        for number in range(old.num_row_groups):
            table = old.read_row_group(number)
            ids = table[c.ID].to_pylist()
            places = {at: left.pop(row_id) for at, row_id in enumerate(ids) if row_id in left}
            if places:
                order = np.arange(len(ids))
                order[[*places]] = [len(ids) + row for row in places.values()]
                both = [table.replace_schema_metadata(None), new]
                table = take_rows(pa.concat_tables(both), order)
                table = table.replace_schema_metadata(schema.metadata)
                positions += [rows + at for at in places]
            writer.write_table(table)
            rows += len(ids)
        if left:
            table = take_rows(new, np.array([*left.values()], np.int64))
            writer.write_table(table.replace_schema_metadata(schema.metadata))
            positions += range(rows, rows + len(left))
            rows += len(left)
        entry = [label, text_of(np.array(sorted(positions), np.int64))]
        notes = {
            key.decode(): value.decode()
            for key, value in (old.metadata.metadata or {}).items()
            if key.startswith(b"mediamill.")
        }
        notes[REPLACED.decode()] = json.dumps([*noted, entry])
        writer.add_key_value_metadata(notes)
    return rows
