"""Exports the finished rows of an output to another form, in a stream that can be killed.

Rows are written in shards. A shard's files appear one after the other, each atomically; then the
state of the export says that it is complete. The same command goes on where a killed one stopped,
and later exports the rows that are new since.
"""

import contextlib
import hashlib
import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mediamill.pipeline.coordinator import lease
from mediamill.pipeline.export import captions, csv_file, fiftyone, jsonl
from mediamill.pipeline.export.formats import ExportContext, Join, MakeShard, Shard
from mediamill.pipeline.export.imagefolder import ImageFolder
from mediamill.pipeline.export.media import MediaReader, the_uri
from mediamill.pipeline.export.parquet import ParquetShard, export_schema
from mediamill.pipeline.export.run import Run
from mediamill.pipeline.export.sidecar import Record, Sidecars
from mediamill.pipeline.export.source import Source, Unit, choose_columns
from mediamill.pipeline.export.state import HIDDEN, State, StateFolder
from mediamill.pipeline.export.tables import IcebergShard, LanceShard, check_installed, iceberg_name
from mediamill.pipeline.export.webdataset import TarShard
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.conditions import parse_condition
from mediamill.schemas.errors import JobError


@dataclass(frozen=True)
class Format:
    """A form of export. rows: of a shard. join: makes one file of all shards' `part` files.

    media: whether the media are exported: always, never, or as asked (None).
    all_columns: whether all columns are exported by default, or id and text.
    """

    make: MakeShard
    rows: int
    media: bool | None = False
    all_columns: bool = True
    join: Join | None = None
    single: str = ""


FORMATS: Mapping[str, Format] = {
    "jsonl": Format(jsonl.JsonLines, 100_000, join=jsonl.join, single=".jsonl"),
    "csv": Format(csv_file.CsvFile, 100_000, join=csv_file.join, single=".csv"),
    "parquet": Format(ParquetShard, 1_000_000, media=None),
    "webdataset": Format(TarShard, 10_000, media=None),
    "imagefolder": Format(ImageFolder, 1_000, media=True, all_columns=False),
    "fiftyone": Format(
        fiftyone.LabeledPictures, 1_000, media=True, all_columns=False, join=fiftyone.join
    ),
    "lance": Format(LanceShard, 100_000, media=None),
    "iceberg": Format(IcebergShard, 100_000, media=None),
}
SIDECAR = "sidecar"


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and how; the command line describes each."""

    output: str
    target: str
    to: str
    where: str | None = None
    columns: tuple[str, ...] | None = None
    text: str = c.TEXT
    suffix: str = "txt"
    table: str | None = None
    errors: bool = False
    media: bool | None = None
    rows_per_file: int | None = None
    roots: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class ExportSummary:
    """exported, left_out (by reason): rows, of all calls for this target. new: of this one."""

    exported: int
    new: int
    left_out: Mapping[str, int]
    target: str
    seconds: float


def export(options: ExportOptions) -> ExportSummary:
    """Exports the rows that are not exported yet, and returns what is exported now.

    Raises JobError for wrong options, a target that holds files of others, and an output without
    rows; RunError when another export works on the same target.
    """
    started = time.monotonic()
    if options.to in ("lance", "iceberg"):
        check_installed(options.to)
    source = Source(options.output, options.table)
    units = source.units()
    if source.schema is None:
        shown = storage.redact(source.place.url)
        raise JobError(f"{shown}: found no finished rows yet, expected some to export")
    context, chosen = _context(options, source.schema), _conditions(options, source.schema)
    form = _format(options)
    beside = options.to == "webdataset" and not context.media and _has_tar_members(source, units)
    if form is not None and beside:
        form = Format(captions.CaptionParts, form.rows)
    single = form is not None and form.single and options.target.endswith(form.single)
    place = context.target
    files = place if not single else _hidden_beside(place)
    state_folder = StateFolder(files if single else files / HIDDEN)
    if options.to == "iceberg":  # its target is no folder
        digest = hashlib.sha256(options.target.encode()).hexdigest()[:16]
        state_folder = StateFolder(source.place / ledger.HIDDEN / "exports" / digest)
    bound = _bound(options, context)
    if options.to == SIDECAR:  # files of several outputs may lie in one folder
        digest = hashlib.sha256(json.dumps(bound).encode()).hexdigest()[:16]
        state_folder = StateFolder(state_folder.place / digest)
    with lease.hold(state_folder.place, f"export-{uuid.uuid4().hex[:8]}"):
        if options.overwrite:
            _remove(state_folder, files)
        state = state_folder.load(bound)
        if state is None:
            if options.to not in (SIDECAR, "iceberg"):
                _check_empty(place, options)
            state = State(bound)
            state_folder.begin(state)
        before = state.exported
        run = Run(source, state, state_folder, files, chosen)
        if form is None:
            record = Record(_written(state_folder, files / HIDDEN))
            run.execute(units, lambda *_: Sidecars(context, record), 1_000)
        else:
            rows = options.rows_per_file or form.rows

            def make(number: int, scratch: Path) -> Shard:
                assert form is not None
                return form.make(replace(context, exported=state.exported), number, scratch)

            run.execute(units, make, rows)
            if form.join is not None and (single or options.to == "fiftyone"):
                target = place if single else place / fiftyone.LABELS
                _join(form.join, files, state_folder, state, target)
            if beside:
                with tempfile.TemporaryDirectory() as scratch:
                    parts = _fetched(files, _parts(state_folder, state), Path(scratch))
                    captions.write_shards(parts, files)
    seconds = round(time.monotonic() - started, 3)
    shown = storage.redact(place.url)
    new = state.exported - before
    return ExportSummary(state.exported, new, dict(state.left_out), shown, seconds)


def _format(options: ExportOptions) -> Format | None:
    if options.to == SIDECAR:
        return None
    return FORMATS[options.to]


def _context(options: ExportOptions, schema: pa.Schema) -> ExportContext:
    form = _format(options)
    media = bool(form and (form.media if form.media is not None else options.media))
    if form is not None and options.to == "webdataset" and options.media is None:
        media = True
    if options.media is not None and (form is None or form.media is not None):
        raise JobError(f"--media, --no-media: {options.to} leaves no choice, expected neither")
    needs_text = options.to == "fiftyone" or (options.to == SIDECAR and options.suffix != "json")
    if needs_text and options.text not in schema.names:
        known = ", ".join(schema.names)
        raise JobError(f"--text: found no column '{options.text}', expected one of {known}"[:1500])
    if options.columns is not None:
        columns = tuple(choose_columns(schema, options.columns))
    elif form is not None and not form.all_columns:
        columns = tuple(name for name in (c.ID, options.text) if name in schema.names)
    else:
        columns = tuple(schema.names)
    if len(set(columns)) < len(columns):
        raise JobError(f"--columns: found a column twice in {', '.join(columns)}")
    if not columns:
        raise JobError("--columns: found none, expected at least one")
    roots = tuple(storage.absolute(root) for root in options.roots)
    target = storage.resolve(options.target)
    if options.to == "iceberg":
        target = Place(target.fs, "".join(iceberg_name(options.target)), options.target)
    base = storage.absolute(".")
    reader = MediaReader(roots, options.hosts)
    context = ExportContext(
        schema,
        columns,
        options.text,
        media,
        options.suffix,
        target,
        (target.url, *roots, base),
        options.overwrite,
        reader,
    )
    if options.to == "parquet":
        export_schema(context)
    return context


def _conditions(options: ExportOptions, schema: pa.Schema) -> dict[str, pc.Expression]:
    """Returns the conditions on rows, by the reason for which the others are left out."""
    conditions = {}
    if c.STATUS in schema.names and not options.errors:
        conditions["error rows"] = pc.field(c.STATUS) == c.STATUS_OK
    if options.where is not None:
        conditions["not chosen by --where"] = parse_condition(options.where, schema)
    return conditions


def _bound(options: ExportOptions, context: ExportContext) -> dict[str, Any]:
    return {
        "output": storage.redact(storage.absolute(options.output)),
        "to": options.to,
        "where": options.where,
        "columns": list(context.columns),
        "table": options.table,
        "errors": options.errors,
        "media": context.media,
        "text": options.text,
        "suffix": options.suffix,
    }


def _hidden_beside(file: Place) -> Place:
    folder, _, name = file.path.rpartition("/")
    url = file.url.rpartition("/")[0]
    hidden = f"{HIDDEN}-{name}"
    return Place(file.fs, f"{folder}/{hidden}", f"{url}/{hidden}")


def _check_empty(place: Place, options: ExportOptions) -> None:
    """Checks that an export that has not begun finds nothing in its place."""
    foreign = [name for name in storage.list_files(place) if not name.startswith(f"{HIDDEN}/")]
    if foreign and not options.overwrite:
        shown = storage.redact(place.url)
        raise JobError(
            f"{shown}: found files ('{foreign[0]}') that no export has written there, expected an "
            "empty folder or nothing yet; --overwrite writes there all the same"
        )


def _written(own: StateFolder, parent: Place) -> Iterator[tuple[str, str, str]]:
    """Yields name, row id and hash of all text files in the target that exports have written.

    The id is empty in those of other outputs, so that their rows do not count as rivals.
    """
    names = {name.partition("/")[0] for name in storage.list_files(parent)}
    places = [parent / name for name in sorted(names) if not own.place.path.endswith(f"/{name}")]
    for folder in (*map(StateFolder, places), own):
        with contextlib.suppress(FileNotFoundError):
            for note in folder.notes(State(**_state_values(folder))):
                for name, row_id, digest in note["files"]:
                    yield name, row_id if folder is own else "", digest


def _remove(folder: StateFolder, files: Place) -> None:
    """Removes what an earlier export has written, by its own notes, and its state."""
    try:
        state = State(**_state_values(folder))
    except FileNotFoundError:
        return
    captions.remove_shards(files)
    if state.bound.get("to") != SIDECAR:
        for note in folder.notes(state):
            for name in note["files"]:
                storage.remove(files / name)
    folder.clear()


def _state_values(folder: StateFolder) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(storage.read(folder.place / "state.json"))
    return values


def _join(join: Join, files: Place, folder: StateFolder, state: State, target: Place) -> None:
    """Writes one file of the shards' part files. It replaces an older one atomically."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        with whole.open("wb") as file:
            for chunk in join(_fetched(files, _parts(folder, state), Path(scratch))):
                file.write(chunk)
        storage.put_file(target, whole)


def _parts(folder: StateFolder, state: State) -> list[str]:
    written = (name for note in folder.notes(state) for name in note["files"])
    return [name for name in written if name.endswith((".jsonl", ".csv", ".part"))]


def _has_tar_members(source: Source, units: list[Unit]) -> bool:
    """Whether the first row is about a member of a tar file, as those of a WebDataset are."""
    first = next((table for unit in units for table in source.read(unit, 0)), None)
    if first is None:
        return False
    names = [name for name in (c.URI, c.MEDIA) if name in first.column_names]
    row = first.select(names).slice(0, 1).to_pylist()[0]
    return captions.tar_member(the_uri(row)) is not None


def _fetched(files: Place, names: list[str], scratch: Path) -> Iterator[Path]:
    for name in names:
        if files.is_local:
            yield Path((files / name).path)
            continue
        path = scratch / "part"
        storage.with_retries(files, partial(_get, (files / name).path, str(path)))
        yield path
        path.unlink()


def _get(source: str, target: str, fs: Any) -> None:
    fs.get_file(source, target)
