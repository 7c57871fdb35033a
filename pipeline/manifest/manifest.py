"""Turns a manifest's URL into the list of its Parquet files: rows, row groups and partition values.

Lists once, and reads the footers of those files only that are not known already. What the columns
mean is schemas/manifest.py's; reading the rows is read.py's.
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger import hive_paths
from mediamill.pipeline.ledger.state import KnownFile
from mediamill.pipeline.storage import file_version, storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import ManifestSchema, check_manifest_schema

_SUFFIXES = (".parquet", ".parq", ".pq")
_FOOTER_READERS = 16
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class ManifestFile:
    """One file of a manifest.

    name: its path relative to the manifest, the same when the manifest is moved as a whole.
    row_groups: rows of each. partitions: the columns that its hive path gives, with their values.
    stamp: see stamps.py. digest: of its ids, None when they have to be read.
    """

    name: str
    place: Place
    row_groups: tuple[int, ...]
    partitions: Mapping[str, Any]
    stamp: str
    digest: str | None

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


def open_manifest(url: str, known: Sequence[KnownFile] = ()) -> Manifest:
    """The manifest at a Parquet file, a folder or a glob.

    known: files as an earlier run found them, all of one schema; of those whose stamps are still
    the same only one is read.
    Raises JobError when there is none, when a file is not Parquet, when the columns are wrong or
    when the files do not agree on them.
    """
    root = storage.resolve(url)
    base, listed = _list(root)
    names = sorted(listed)
    same = {file.name: file for file in known if file.stamp and listed.get(file.name) == file.stamp}
    witness = next((name for name in names if name in same), None)
    read = [name for name in names if name not in same or name == witness]
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        footers = dict(zip(read, readers.map(lambda name: _footer(base / name), read), strict=True))
    found, values = _partitions(names)
    # A column of the file itself counts, and not what its path says of it.
    fields = [field for field in found if field.name not in footers[read[0]][1].names]
    schema = _common_schema(base, {name: inside for name, (_, inside) in footers.items()}, fields)
    files = []
    for name, row in zip(names, values, strict=True):
        groups = same[name].row_groups if name in same else footers[name][0]
        kept = {field.name: row[field.name] for field in fields}
        digest = same[name].digest if name in same else None
        files.append(ManifestFile(name, base / name, groups, kept, listed[name], digest))
    return Manifest(root.url, tuple(files), schema, pa.schema(fields))


def _common_schema(
    base: Place, inside: Mapping[str, pa.Schema], fields: Sequence[pa.Field]
) -> ManifestSchema:
    """What all files hold: their own columns and those of their paths."""
    first: tuple[str, ManifestSchema] | None = None
    for name, columns in inside.items():
        where = storage.redact((base / name).url)
        schema = check_manifest_schema(pa.schema([*columns, *fields]), where)
        first = first or (where, schema)
        if difference := _difference(first[1], schema):
            raise JobError(f"{where}: {difference} as in {first[0]}")
    assert first is not None
    return first[1]


def _list(root: Place) -> tuple[Place, dict[str, str]]:
    """The folder that names are relative to, and the stamps of all files by name."""
    shown = storage.redact(root.url)
    try:
        try:
            info = root.fs.info(root.path)
        except (FileNotFoundError, NotADirectoryError):
            info = {"type": None}
        except PermissionError:  # only what lies in the folder of an object store may be read
            if not root.fs.isdir(root.path):
                raise
            info = {"type": "directory"}
        if info["type"] == "file":
            folder = Place(root.fs, posixpath.dirname(root.path), posixpath.dirname(root.url))
            name = posixpath.basename(root.path)
            return folder, _stamps(folder, {name: info})
        if info["type"] == "directory":
            base, infos = root, root.fs.find(root.path, detail=True)
        elif any(sign in root.path for sign in "*?["):
            base, infos = _glob(root)
        else:
            raise JobError(f"{shown}: found no such file or folder, expected the manifest")
        names = {posixpath.relpath(path, base.path): info for path, info in infos.items()}
        visible = {n: i for n, i in names.items() if not any(p[0] in "._" for p in n.split("/"))}
        found = {n: info for n, info in visible.items() if n.lower().endswith(_SUFFIXES)}
        if not found:
            raise JobError(
                f"{shown}: found {len(visible)} files and none of them ends in .parquet, "
                "expected Parquet files"
            )
        return base, _stamps(base, found)
    except (PermissionError, OSError) as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{shown}: the manifest cannot be read: {reason}") from error


def _stamps(base: Place, infos: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: file_version.file_version(base / name, info) for name, info in infos.items()}


def _glob(root: Place) -> tuple[Place, dict[str, Any]]:
    parts = root.path.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
    folder = "/".join(parts[:fixed])
    cut = root.url.split("/")
    base = Place(root.fs, folder, "/".join(cut[: len(cut) - (len(parts) - fixed)]))
    found = root.fs.glob(root.path, detail=True)
    return base, {path: info for path, info in found.items() if info["type"] != "directory"}


def _partitions(names: Sequence[str]) -> tuple[list[pa.Field], list[dict[str, int | str | None]]]:
    """The columns that folders like `date=2024-01-01` make, and each file's values.

    A column is int64 if all its values are whole numbers as they are usually written, so that "01"
    stays text.
    """
    found = [hive_paths.values(posixpath.dirname(name)) for name in names]
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
        reason = storage.redact_text(str(error)).splitlines()[0]
        raise JobError(
            f"{storage.redact(place.url)}: found no readable Parquet file ({reason}), "
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
