"""Checks values of new files before a job starts: partition values, and numbers to be converted.

Reads only the columns in question.
"""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger import hive_paths
from mediamill.pipeline.manifest.batches import read_batches
from mediamill.pipeline.manifest.manifest import Manifest, ManifestFile
from mediamill.pipeline.storage import storage
from mediamill.schemas.arrow_convert import convert, convert_column, flight_type, take_rows
from mediamill.schemas.arrow_types import is_text
from mediamill.schemas.errors import JobError

_READERS = 8  # manifest files that are read at once
_BATCH_ROWS = 8192
_BUFFER_BYTES = 4 << 20  # of one column: a large row group is not held whole
_FOLDER_BYTES = 255  # the longest file name of common file systems
# Texts that pyarrow and pandas (and DuckDB) take for 32-bit integers when all of a column are.
_INTEGER = re.compile(r"-?[0-9]+|0[xX][0-9a-fA-F]+", re.ASCII)
# Texts that DuckDB or Spark take for numbers.
_NUMBER = re.compile(
    r"\s*[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*|[-+]?(nan|inf(inity)?)",
    re.ASCII | re.IGNORECASE,
)
_PLAIN = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)  # numbers that read back as the same text


@dataclass
class _Texts:
    """What is known of the texts of one partition column.

    in_files: whether values of the files are among them; others come from folder names as it is.
    integers, numbers: whether all look like these. changed: one that reads back as another text.
    """

    in_files: bool = False
    integers: bool = True
    numbers: bool = True
    changed: str | None = None

    def add(self, values: Iterable[object]) -> None:
        for value in values:
            if isinstance(value, str):
                self.integers = self.integers and _as_int32(value) is not None
                self.numbers = self.numbers and _NUMBER.fullmatch(value) is not None
                if self.changed is None and not _PLAIN.fullmatch(value):
                    self.changed = value

    def join(self, other: "_Texts") -> None:
        self.in_files = self.in_files or other.in_files
        self.integers = self.integers and other.integers
        self.numbers = self.numbers and other.numbers
        self.changed = other.changed if self.changed is None else self.changed


def check_values(manifest: Manifest, partition_by: Sequence[str], begun: bool) -> tuple[str, ...]:
    """Checks the files that no earlier run has checked; returns notes for the user.

    begun: whether the output has rows already.
    Raises JobError for values that cannot be folder names, that readers would change, or that the
    type which the files have in common does not hold.
    """
    unchecked = [file for file in manifest.files if file.digest is None]
    with ThreadPoolExecutor(_READERS) as readers:
        found = list(readers.map(lambda file: _check(file, manifest, partition_by), unchecked))
    types = {field.name: field.type for field in manifest.schema.user}
    shown, notes = storage.redact(manifest.url), []
    for name in partition_by:
        texts = _Texts()
        for columns in found:
            texts.join(columns[name])
        if not is_text(types[name]) or texts.changed is None:
            continue
        found_text = repr(texts.changed)
        said = f"{shown}: partition_by names the text column '{name}', whose values all look like"
        advice = f"put a letter in front ('z{texts.changed}'), or partition by another column"
        if texts.integers and texts.in_files and not begun:
            raise JobError(
                f"{said} numbers: pandas, pyarrow and DuckDB read {found_text} back from a folder "
                f"name as {_as_int32(texts.changed)}, expected values that stay: {advice}"
            )
        if texts.integers or texts.numbers:
            notes.append(
                f"{said} numbers: readers that guess types may read {found_text} back from a "
                f"folder name as a number: name the column's type to them, or {advice}"
            )
    return tuple(notes)


def _as_int32(text: str) -> int | None:
    """Returns what pyarrow and pandas make of a text; None if it stays text."""
    if not _INTEGER.fullmatch(text):
        return None
    number = int(text, 16) if text[1:2] in ("x", "X") else int(text[:40])
    return number if -(2**31) <= number < 2**31 else None


def _check(
    file: ManifestFile, manifest: Manifest, partition_by: Sequence[str]
) -> dict[str, _Texts]:
    texts = {name: _Texts(name not in file.partitions) for name in partition_by}
    where = storage.redact(file.place.url)
    for name in partition_by:
        if name in file.partitions:
            values = [file.partitions[name]]
            _check_folders(name, values, where)
            texts[name].add(values)
    columns = [name for name in partition_by if name not in file.partitions]
    columns = [*dict.fromkeys([*columns, *file.doubtful])]
    if not columns or not file.rows:
        return texts
    types = {field.name: field.type for field in manifest.schema.user}
    with (
        file.place.fs.open(file.place.path, "rb", cache_type="none") as source,
        pq.ParquetFile(source, buffer_size=_BUFFER_BYTES) as parquet,
    ):
        start = 0
        for batch in read_batches(parquet, file.place, _BATCH_ROWS, columns):
            for name in set(columns) & set(batch.schema.names):
                array = _converted(batch[name], types[name], name, start, where)
                if name in texts:
                    values = _partition_values(array, name, start, where)
                    _check_folders(name, values, where)
                    texts[name].add(values)
            start += batch.num_rows
    return texts


def _converted(array: pa.Array, target: pa.DataType, name: str, start: int, where: str) -> pa.Array:
    """Raises JobError for a value that does not fit the type."""
    flight = flight_type(target)
    try:
        return convert(array, flight)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        table = pa.table({name: array})
        for row in range(len(array)):
            try:
                convert_column(take_rows(table, np.array([row]))[name], flight)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise JobError(
                    f"{where}: row {start + row}: column '{name}' is {array.type}, and the "
                    f"manifest's files together have {target}, which does not hold this value "
                    f"({str(error)[:300]}): write the column with one type in all files"
                ) from error
        raise


def _partition_values(array: pa.Array, name: str, start: int, where: str) -> list[object]:
    """Returns the different values. Raises JobError for one that is not UTF-8."""
    try:
        return hive_paths.partition_values(pa.chunked_array([pc.unique(array)]))
    except UnicodeDecodeError:
        for row, value in enumerate(array, start):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise JobError(
                    f"{where}: row {row}: partition_by names column '{name}', where found a text "
                    f"that is not UTF-8 ({error.object[:40]!r}), expected UTF-8: folders are named "
                    "after it"
                ) from error
        raise


def _check_folders(name: str, values: Iterable[object], where: str) -> None:
    for value in values:
        if value == hive_paths.NULL:
            raise JobError(
                f"{where}: partition_by names column '{name}', where found the text '{value}', "
                "which reads back as null, expected another text, or null"
            )
        if len(hive_paths.folder([name], [value]).encode()) > _FOLDER_BYTES:
            raise JobError(
                f"{where}: partition_by names column '{name}', where found a value of "
                f"{len(str(value))} characters, expected values that fit a folder name of "
                f"{_FOLDER_BYTES} bytes"
            )
