"""Turns a manifest's URL into the list of its Parquet files: rows, row groups and partition values.

Reads footers only. What the columns mean is schemas/manifest.py's; reading the rows is read.py's.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import partitions, storage
from pipeline.storage import Place
from schemas.errors import JobError
from schemas.manifest import ManifestSchema, check_manifest_schema

_SUFFIXES = (".parquet", ".parq", ".pq")
_FOOTER_READERS = 16
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class ManifestFile:
    """One file of a manifest.

    name: its path relative to the manifest, the same when the manifest is moved as a whole.
    row_groups: rows of each. partitions: the columns that its hive path gives, with their values.
    """

    name: str
    place: Place
    row_groups: tuple[int, ...]
    partitions: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True)
class Manifest:
    """All files, in the order of their paths; `schema` holds for each of them."""

    url: str
    files: tuple[ManifestFile, ...]
    schema: ManifestSchema
    partitions: pa.Schema  # of the columns that come from hive paths

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def open_manifest(url: str) -> Manifest:
    """The manifest at a Parquet file, a folder or a glob.

    Raises JobError when there is none, when a file is not Parquet, when the columns are wrong or
    when the files do not agree on them.
    """
    root = storage.resolve(url)
    base, names = _list(root)
    found, values = _partitions(names)
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        footers = list(readers.map(lambda name: _footer(base / name), names))
    # A column of the file itself counts, and not what its path says of it.
    fields = [field for field in found if field.name not in footers[0][1].names]
    files = []
    schemas: list[ManifestSchema] = []
    for name, (groups, inside), row in zip(names, footers, values, strict=True):
        where = storage.shown((base / name).url)
        schemas.append(check_manifest_schema(pa.schema([*inside, *fields]), where))
        if difference := _difference(schemas[0], schemas[-1]):
            raise JobError(f"{where}: {difference} as in {storage.shown((base / names[0]).url)}")
        kept = {field.name: row[field.name] for field in fields}
        files.append(ManifestFile(name, base / name, groups, kept))
    return Manifest(root.url, tuple(files), schemas[0], pa.schema(fields))


def _list(root: Place) -> tuple[Place, list[str]]:
    """The folder that names are relative to, and the names of all files, sorted."""
    shown = storage.shown(root.url)
    try:
        if root.fs.isfile(root.path):
            folder, name = posixpath.split(root.path)
            return Place(root.fs, folder, posixpath.dirname(root.url)), [name]
        if root.fs.isdir(root.path):
            base, names = root, storage.files_below(root)
        elif any(sign in root.path for sign in "*?["):
            base, names = _glob(root)
        else:
            raise JobError(f"{shown}: found no such file or folder, expected the manifest")
    except (PermissionError, OSError) as error:
        raise JobError(f"{shown}: the manifest cannot be read: {error}") from error
    visible = [n for n in names if not any(part[0] in "._" for part in n.split("/") if part)]
    parquet = sorted(name for name in visible if name.lower().endswith(_SUFFIXES))
    if not parquet:
        raise JobError(
            f"{shown}: found {len(visible)} files and none of them ends in .parquet, "
            "expected Parquet files"
        )
    return base, parquet


def _glob(root: Place) -> tuple[Place, list[str]]:
    parts = root.path.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
    folder = "/".join(parts[:fixed])
    cut = root.url.split("/")
    base = Place(root.fs, folder, "/".join(cut[: len(cut) - (len(parts) - fixed)]))
    found = [path for path in root.fs.glob(root.path) if root.fs.isfile(path)]
    return base, [posixpath.relpath(path, folder) for path in found]


def _partitions(names: Sequence[str]) -> tuple[list[pa.Field], list[dict[str, int | str | None]]]:
    """The columns that folders like `date=2024-01-01` make, and each file's values.

    A column is int64 if all its values are whole numbers as they are usually written, so that "01"
    stays text.
    """
    found = [partitions.values(posixpath.dirname(name)) for name in names]
    fields = []
    for column in dict.fromkeys(column for values in found for column in values):
        texts = {values[column] for values in found if values.get(column) is not None}
        whole = all(text is not None and _WHOLE.fullmatch(text) for text in texts)
        fields.append(pa.field(column, pa.int64() if texts and whole else pa.string()))
    typed: list[dict[str, int | str | None]] = []
    for values in found:
        row: dict[str, int | str | None] = {}
        for field in fields:
            text = values.get(field.name)
            row[field.name] = int(text) if text and pa.types.is_integer(field.type) else text
        typed.append(row)
    return fields, typed


def _footer(place: Place) -> tuple[tuple[int, ...], pa.Schema]:
    try:
        with place.fs.open(place.path, "rb") as file, pq.ParquetFile(file) as parquet:
            footer = parquet.metadata
            groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
            return tuple(groups), parquet.schema_arrow
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise JobError(
            f"{storage.shown(place.url)}: found no readable Parquet file ({reason}), "
            "expected the manifest"
        ) from error


def _difference(first: ManifestSchema, other: ManifestSchema) -> str | None:
    """A column that the files do not agree on; their order does not matter."""
    known = {field.name: field.type for field in first.fields}
    found = {field.name: field.type for field in other.fields}
    for name in known | found:
        if known.get(name) != found.get(name):
            has, expected = found.get(name, "missing"), known.get(name, "no such column")
            return f"column '{name}' is {has}, expected {expected}"
    return None
