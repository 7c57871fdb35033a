"""Opens a manifest: its Parquet files, with their row groups, and the columns that all share.

The storage is listed once, and only the footers of new and changed files are read. The columns are
checked in schemas/manifest.py; the rows are read in stages/read.py.
"""

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.state import KnownFile
from mediamill.pipeline.manifest.hive_columns import HiveColumns
from mediamill.pipeline.manifest.listing import list_files
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_types import plain_type
from mediamill.schemas.arrow_unify import always_fits
from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import ManifestSchema, check_manifest_schema
from mediamill.schemas.media_column import same_media_column

_FOOTER_READERS = 16
_HEADER_KEY, _MEDIA_KEY = "manifest_schema", "manifest_media_column"  # in the header of an output


@dataclass(frozen=True)
class ManifestFile:
    """One file of a manifest.

    name: its path relative to the manifest; does not change when the manifest is moved.
    row_groups: number of rows of each.
    partitions: values of the columns that its hive path gives. Columns of the file go first.
    version: see file_version.py.
    digest: of its ids; None if they must be read.
    doubtful: columns whose values may not fit the type that the manifest's files have in common.
    """

    name: str
    place: Place
    row_groups: tuple[int, ...]
    partitions: Mapping[str, Any]
    version: str
    digest: str | None
    doubtful: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True)
class Manifest:
    """All files, ordered by path; `schema` applies to each of them.

    partitions: the columns that come from hive paths, in files that lack them.
    notes: sentences for the user: which files were left out and why, and the like.
    """

    url: str
    files: tuple[ManifestFile, ...]
    schema: ManifestSchema
    partitions: pa.Schema
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def header(self) -> dict[str, str]:
        """Returns what `open_manifest` needs of an output's header, so that types stay."""
        texts = [pa.field(name, pa.string()) for name in self.schema.optional]
        schema = pa.schema([*self.schema.fields[:2], *texts, *self.schema.user])
        header = {_HEADER_KEY: base64.b64encode(schema.serialize()).decode()}
        in_table = self.schema.media_column
        return header if in_table is None else {**header, _MEDIA_KEY: in_table}


def open_manifest(
    url: str,
    known: Sequence[KnownFile] = (),
    header: Mapping[str, Any] | None = None,
    media_column: str | None = None,
) -> Manifest:
    """Opens the manifest at a Parquet file, a folder or a glob.

    known: the files that an earlier run found. Of those that have not changed since, at most one
    footer is read. header: of the output; it decides the types of the columns.
    media_column: the job's key of this name.
    Raises JobError if there is no manifest, if a file is not Parquet, if the columns are wrong or
    differ between the files in a way that no type holds both.
    """
    root = storage.resolve(url)
    shown = storage.redact(root.url)
    base, listed, notes = list_files(root)
    names = sorted(listed)
    unchanged = {
        file.name: file for file in known if file.stamp and listed.get(file.name) == file.stamp
    }
    begun = _begun_schema(header)
    # Older outputs do not hold the schema: one unchanged file stands for the columns of all.
    old = [name for name in names if name in unchanged]
    sample = next((name for name in old if unchanged[name].rows), next(iter(old), None))
    read = [name for name in names if name not in unchanged or name == sample]
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        footers = dict(
            zip(read, readers.map(lambda name: _read_footer(base / name), read), strict=True)
        )
    hive = HiveColumns(names, shown)
    has_rows = any(sum(groups) for groups, _ in footers.values())
    # The columns of an empty table often have no types, or wrong ones.
    own = {
        name: schema for name, (groups, schema) in footers.items() if sum(groups) or not has_rows
    }
    own = same_media_column(own, media_column, begun and begun.media_field)
    fields = _path_fields(hive.fields(), own, begun, header)
    _check_ids(base, own, fields)
    schemas = {
        name: check_manifest_schema(
            pa.schema([*columns, *(f for f in fields if f.name not in columns.names)]),
            storage.redact((base / name).url),
            media_column,
        )
        for name, columns in own.items()
    }
    if begun is None and sample is not None:
        begun = schemas[sample]
    schema = _common_schema(base, schemas, begun)
    types = {field.name: field.type for field in schema.user}
    fields = [field.with_type(types.get(field.name, pa.string())) for field in fields]
    files = []
    for name in names:
        columns = own.get(name, pa.schema([]))
        groups = footers[name][0] if name in footers else unchanged[name].row_groups
        digest = unchanged[name].digest if name in unchanged else None
        partitions = hive.values(name, (f for f in fields if f.name not in columns.names))
        doubtful = tuple(
            field.name
            for field in columns
            if field.name in types and not always_fits(plain_type(field.type), types[field.name])
        )
        version = listed[name]
        files.append(ManifestFile(name, base / name, groups, partitions, version, digest, doubtful))
    notes = (*notes, *hive.notes(), *_case_notes(schema, shown))
    return Manifest(root.url, tuple(files), schema, pa.schema(fields), notes)


def _begun_schema(header: Mapping[str, Any] | None) -> ManifestSchema | None:
    text = (header or {}).get(_HEADER_KEY)
    if text is None:
        return None
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
    begun = check_manifest_schema(schema, "the output's header")
    return replace(begun, media_column=(header or {}).get(_MEDIA_KEY))


def _path_fields(
    inferred: Sequence[pa.Field],
    own: Mapping[str, pa.Schema],
    begun: ManifestSchema | None,
    header: Mapping[str, Any] | None,
) -> list[pa.Field]:
    """Returns the columns of paths that not all of the files have, with the types of the output.

    A column of a file takes precedence over one of its path.
    """
    settled: dict[str, pa.DataType] = {}
    if begun is not None:
        settled = {field.name: field.type for field in begun.user}
    elif header is not None:  # of an older output, whose paths gave only these two types
        written = header["layout"]["columns"]
        names = {"int64": pa.int64(), "string": pa.string()}
        settled = {name: names[text] for name, text in written.items() if text in names}
    for columns in own.values():
        for field in columns:
            settled.setdefault(field.name, plain_type(field.type))
    everywhere = [set(columns.names) for columns in own.values()]
    return [
        field.with_type(settled.get(field.name, field.type))
        for field in inferred
        if not everywhere or not all(field.name in names for names in everywhere)
    ]


def _check_ids(base: Place, own: Mapping[str, pa.Schema], fields: Sequence[pa.Field]) -> None:
    """Checks that ids do not come from paths: all rows of a file would have the same."""
    if any(field.name == c.ID for field in fields):
        name = next(name for name, columns in own.items() if c.ID not in columns.names)
        raise JobError(
            f"{storage.redact((base / name).url)}: found the column '{c.ID}' in the path, expected "
            "it in the file"
        )


def _common_schema(
    base: Place, schemas: Mapping[str, ManifestSchema], begun: ManifestSchema | None
) -> ManifestSchema:
    """Returns the schema of the output that was begun, else the one that holds all files' rows."""
    common, first = begun, ""
    for name, schema in schemas.items():
        where = storage.redact((base / name).url)
        if begun is not None:
            begun.check_holds(schema, where)
        elif common is None:
            common, first = schema, where
        else:
            common = common.merged(schema, where, first)
    assert common is not None
    return common


def _case_notes(schema: ManifestSchema, shown: str) -> list[str]:
    by_folded: dict[str, str] = {name.casefold(): name for name in c.RESULT_COLUMNS}
    notes = []
    for field in schema.fields:
        other = by_folded.setdefault(field.name.casefold(), field.name)
        if other != field.name:
            notes.append(
                f"{shown}: columns '{other}' and '{field.name}' of the result differ only by case: "
                "Spark and DuckDB take them for one"
            )
    return notes


def _read_footer(place: Place) -> tuple[tuple[int, ...], pa.Schema]:
    try:
        with place.fs.open(place.path, "rb") as file, pq.ParquetFile(file) as parquet:
            footer = parquet.metadata
            groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
            schema = parquet.schema_arrow
            _ = schema.names  # raises for a name that is not UTF-8
            return tuple(groups), schema
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = storage.redact_text(str(error)).splitlines()[0][:400]
        raise JobError(
            f"{storage.redact(place.url)}: found no readable Parquet file ({reason}), "
            "expected the manifest"
        ) from error
