"""Reads the rows of CSV, TSV, JSONL and plain lists as Python values, line by line.

Rows that cannot be read are left out, with the number of the first such line.
"""

import codecs
import csv
import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_MAX_LINE = 64 * 1024 * 1024  # characters
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
         (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_DELIMITERS = ",;\t|"

# Columns by name, and the number of the line.
Row = tuple[dict[str, Any], int]


@contextmanager
def open_text(place: Place, encoding: str | None = None) -> Iterator[TextIO]:
    """Opens a file as text, also if it is compressed with gzip.

    encoding: None for that of its byte order mark, else UTF-8. Raises JobError.
    """
    shown = storage.redact(place.url)
    try:
        with place.fs.open(place.path, "rb") as raw:
            binary: Any = raw
            if place.path.lower().endswith(".gz"):
                binary = gzip.GzipFile(fileobj=raw)
            buffered = io.BufferedReader(binary) if not hasattr(binary, "peek") else binary
            start = buffered.peek(4)[:4]
            found = next((name for bom, name in _BOMS if start.startswith(bom)), "utf-8")
            # Closing the wrapper would close what fsspec closes itself.
            text = io.TextIOWrapper(buffered, encoding or found, newline="")
            try:
                yield text
            except UnicodeError as error:
                raise JobError(
                    f"{shown}: found bytes that are no {encoding or found} text: {error}, "
                    "expected UTF-8: convert the file, or name its encoding with --encoding"
                ) from error
            finally:
                text.detach()
    except (LookupError, EOFError, OSError) as error:
        reason = storage.redact_text(str(error)).split("\n")[0]
        raise JobError(f"{shown}: the table cannot be read: {reason}") from error


def csv_rows(place: Place, left_out: LeftOut, encoding: str | None = None) -> Iterator[Row]:
    """Yields the rows of a CSV or TSV file by the names of its header. An empty field is null.

    Raises JobError for a header that is not one, and for a field that does not end.
    """
    shown = storage.redact(place.url)
    with open_text(place, encoding) as text:
        reader, names = _csv_reader(text, shown)
        try:
            for fields in reader:
                if not fields:
                    continue
                if len(fields) > len(names):
                    left_out.add(
                        "a row with more fields than the header", f"{shown}, line {reader.line_num}"
                    )
                    continue
                fields += [""] * (len(names) - len(fields))
                yield dict(zip(names, (v or None for v in fields), strict=True)), reader.line_num
        except csv.Error as error:
            raise JobError(f"{shown}, line {reader.line_num}: {error}, expected CSV") from error


def csv_names(place: Place, encoding: str | None = None) -> list[str]:
    """The names of the columns. Raises JobError."""
    with open_text(place, encoding) as text:
        return _csv_reader(text, storage.redact(place.url))[1]


def _csv_reader(text: TextIO, shown: str) -> tuple[Any, list[str]]:
    lines = bounded_lines(text, shown)
    header = next((line for _, line in lines if line.strip()), "")
    if not header.strip():
        raise JobError(f"{shown}: the table is empty, expected a header and rows")
    delimiter = max(_DELIMITERS, key=lambda sign: (header.count(sign), -_DELIMITERS.index(sign)))
    # The library's limit on a field is of the whole process; lines have one here.
    csv.field_size_limit(_MAX_LINE)

    def all_lines() -> Iterator[str]:
        yield header
        yield from (line for _, line in lines)

    reader = csv.reader(all_lines(), delimiter=delimiter)
    names = [name.strip() for name in next(reader)]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None or not all(names):
        problem = f"two columns '{repeated}'" if repeated else "a column without a name"
        raise JobError(f"{shown}: found {problem} in the header, expected different names")
    return reader, names


def json_rows(place: Place, left_out: LeftOut, encoding: str | None = None) -> Iterator[Row]:
    """Yields the objects of a JSONL file. Raises JobError."""
    shown = storage.redact(place.url)
    with open_text(place, encoding) as text:
        for number, line in bounded_lines(text, shown):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                left_out.add("a line that is no JSON", f"{shown}, line {number}")
                continue
            if isinstance(row, dict):
                yield row, number
            else:
                left_out.add("a line that is no JSON object", f"{shown}, line {number}")


def list_rows(place: Place, encoding: str | None = None) -> Iterator[Row]:
    """Yields the lines of a plain list as the column `uri`; lines after # are comments."""
    with open_text(place, encoding) as text:
        for number, line in bounded_lines(text, storage.redact(place.url)):
            uri = line.rstrip("\r\n")
            if uri.strip() and not uri.startswith("#"):
                yield {"uri": uri}, number


def bounded_lines(text: TextIO, shown: str) -> Iterator[tuple[int, str]]:
    """Yields lines with their numbers, from 1. Raises JobError for a line without an end."""
    number = 0
    while line := text.readline(_MAX_LINE):
        number += 1
        if len(line) >= _MAX_LINE and not line.endswith(("\n", "\r")):
            raise JobError(
                f"{shown}, line {number}: found more than {_MAX_LINE:,} characters, expected a "
                "shorter line"
            )
        yield number, line
