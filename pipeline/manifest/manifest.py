"""Lists the Parquet files of a manifest, with their row groups and partition values.

The storage is listed once, and only the footers of new and changed files are read. The columns are
checked in schemas/manifest.py; the rows are read in stages/read.py.
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
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class ManifestFile:
    """One file of a manifest.

    name: its path relative to the manifest; does not change when the manifest is moved.
    row_groups: number of rows of each.
    partitions: values of the columns that its hive path gives.
    version: see file_version.py.
    digest: of its ids; None if they must be read.
    """

    name: str
    place: Place
    row_groups: tuple[int, ...]
    partitions: Mapping[str, Any]
    version: str
    digest: str | None

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True)
class Manifest:
    """All files, ordered by path; `schema` applies to each of them."""

    url: str
    files: tuple[ManifestFile, ...]
    schema: ManifestSchema
    partitions: pa.Schema  # of the columns that come from hive paths

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def open_manifest(
    url: str, known: Sequence[KnownFile] = (), media_column: str | None = None
) -> Manifest:
    """Opens the manifest at a Parquet file, a folder or a glob.

    known: the files that an earlier run found, all of one schema. Of those that have not changed
    since, only one footer is read.
    media_column: the job's key of this name.
    Raises JobError if there is no manifest, if a file is not Parquet, if the columns are wrong or
    differ between the files.
    """
    root = storage.resolve(url)
    base, listed = _list_files(root)
    names = sorted(listed)
    unchanged = {
        file.name: file for file in known if file.stamp and listed.get(file.name) == file.stamp
    }
    # One unchanged file stands for the columns of all.
    sample = next((name for name in names if name in unchanged), None)
    read = [name for name in names if name not in unchanged or name == sample]
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        footers = dict(
            zip(read, readers.map(lambda name: _read_footer(base / name), read), strict=True)
        )
    path_fields, values = _hive_partitions(names)
    # A column of the file itself takes precedence over one of its path.
    fields = [field for field in path_fields if field.name not in footers[read[0]][1].names]
    schemas = {name: file_schema for name, (_, file_schema) in footers.items()}
    schema = _common_schema(base, schemas, fields, media_column)
    files = []
    for name, row in zip(names, values, strict=True):
        groups = unchanged[name].row_groups if name in unchanged else footers[name][0]
        partitions = {field.name: row[field.name] for field in fields}
        digest = unchanged[name].digest if name in unchanged else None
        files.append(ManifestFile(name, base / name, groups, partitions, listed[name], digest))
    return Manifest(root.url, tuple(files), schema, pa.schema(fields))


def _common_schema(
    base: Place,
    schemas: Mapping[str, pa.Schema],
    fields: Sequence[pa.Field],
    media_column: str | None,
) -> ManifestSchema:
    """Returns the schema that all files share: their own columns and those of their paths."""
    first: tuple[str, ManifestSchema] | None = None
    for name, columns in schemas.items():
        where = storage.redact((base / name).url)
        schema = check_manifest_schema(pa.schema([*columns, *fields]), where, media_column)
        first = first or (where, schema)
        if difference := _difference(first[1], schema):
            raise JobError(f"{where}: {difference} as in {first[0]}")
    assert first is not None
    return first[1]


def _list_files(root: Place) -> tuple[Place, dict[str, str]]:
    """Returns the folder that names are relative to, and the versions of all files by name."""
    shown = storage.redact(root.url)
    try:
        try:
            info = root.fs.info(root.path)
        except (FileNotFoundError, NotADirectoryError):
            info = {"type": None}
        except PermissionError:  # an object store may allow only what is below the folder
            if not root.fs.isdir(root.path):
                raise
            info = {"type": "directory"}
        if info["type"] == "file":
            folder, name = storage.split(root)
            return folder, _versions(folder, {name: info})
        if info["type"] == "directory":
            base, infos = root, storage.find(root)
        elif any(sign in root.path for sign in "*?["):
            base, infos = _glob(root)
        else:
            raise JobError(f"{shown}: found no such file or folder, expected the manifest")
        names = {storage.relative(path, base): info for path, info in infos.items()}
        visible = {n: info for n, info in names.items() if not re.search(r"(^|/)[._]", n)}
        parquet = {n: info for n, info in visible.items() if n.lower().endswith(_SUFFIXES)}
        if not parquet:
            raise JobError(
                f"{shown}: found {len(visible)} files and none of them ends in .parquet, "
                "expected Parquet files"
            )
        return base, _versions(base, parquet)
    except OSError as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{shown}: the manifest cannot be read: {reason}") from error


def _versions(base: Place, infos: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: file_version.file_version(base / name, info) for name, info in infos.items()}


def _glob(root: Place) -> tuple[Place, dict[str, Any]]:
    parts = root.path.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
    folder = "/".join(parts[:fixed])
    cut = root.url.split("/")
    base = Place(root.fs, folder, "/".join(cut[: len(cut) - (len(parts) - fixed)]))
    return base, storage.glob(root)


def _hive_partitions(
    names: Sequence[str],
) -> tuple[list[pa.Field], list[dict[str, int | str | None]]]:
    """Returns the columns that folders like `date=2024-01-01` give, and each file's values.

    A column is int64 if all its values are integers in canonical form: "01" stays text.
    """
    by_file = [hive_paths.values(posixpath.dirname(name)) for name in names]
    types: dict[str, pa.DataType] = {}
    for column in dict.fromkeys(column for values in by_file for column in values):
        texts = [text for values in by_file if (text := values.get(column)) is not None]
        is_integer = texts and all(_INTEGER.fullmatch(text) for text in texts)
        types[column] = pa.int64() if is_integer else pa.string()
    typed: list[dict[str, int | str | None]] = [
        {
            column: int(text)
            if (text := values.get(column)) and pa.types.is_integer(kind)
            else text
            for column, kind in types.items()
        }
        for values in by_file
    ]
    return [pa.field(*item) for item in types.items()], typed


def _read_footer(place: Place) -> tuple[tuple[int, ...], pa.Schema]:
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
    """Describes a column that two files do not share; None if there is none. Ignores the order."""
    if first.media_column != other.media_column:
        return f"the media are in {other.media_column}, expected them in {first.media_column}"
    known = {field.name: field.type for field in first.fields}
    types = {field.name: field.type for field in other.fields}
    for name in known | types:
        if known.get(name) != types.get(name):
            actual, expected = types.get(name, "missing"), known.get(name, "no such column")
            return f"column '{name}' is {actual}, expected {expected}"
    return None
