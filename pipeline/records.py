"""The schemas of the tables between the stages, and how a row's failure is stored in them.

Every stage takes and returns tables of exactly these types: a type that Ray has to guess may become
pickled objects, and differ from block to block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mediamill.model.urls import safe_text
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import convert_column
from mediamill.schemas.errors import RowError
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.media_column import MEDIA_BYTES_FIELD
from mediamill.schemas.result import ATTEMPT_FIELDS, RECEIPT_STRUCT, copy_fields
from mediamill.schemas.task import CAPTION, Task

# A row's ordinal: the number of its manifest file in the ledger, and its index in that file.
ROW_FILE, ROW_INDEX = "file", "index"
ROW_STRUCT = pa.struct([pa.field(ROW_FILE, pa.int32()), pa.field(ROW_INDEX, pa.int64())])


# Only between fetch and prepare, which run in one process; of a manifest that holds media, their
# bytes also come with the rows that are read. Each medium has one of the two: what is
# too large for memory is in a temporary file, which the prepare stage removes.
MEDIA_BYTES = c.MEDIA_BYTES
MEDIA_PATHS = "media_paths"


_ROW_FIELD = pa.field(c.ROW, ROW_STRUCT)
STATUS_FIELDS = (
    pa.field(c.STATUS, pa.string()),
    pa.field(c.ERROR_CODE, pa.string()),
    pa.field(c.ERROR_MESSAGE, pa.string()),
    pa.field(c.ATTEMPT_HISTORY, pa.list_(pa.struct(ATTEMPT_FIELDS))),  # see ladder/attempts.py
)
_RECEIPT_FIELDS = (
    pa.field(c.VISUAL_TOKENS, pa.int32()),
    pa.field(c.SHA256, pa.string()),
    pa.field(c.HEIGHT, pa.int32()),
    pa.field(c.WIDTH, pa.int32()),
    pa.field(c.FRAME_TIMES_S, pa.list_(pa.float64())),
    pa.field(c.RECEIPT, pa.list_(RECEIPT_STRUCT)),
)
_TENSOR_FIELDS = (
    pa.field(c.INPUT_IDS, pa.list_(pa.list_(pa.int32()))),  # of each question
    pa.field(c.CONTINUATIONS, pa.list_(pa.list_(pa.int32()))),  # of each text to score
    # uint8 patches of all media of the row, one after the other; large: 32-bit offsets end at 2 GB.
    pa.field(c.PATCHES, pa.large_binary()),
    pa.field(c.GRID_THW, pa.list_(pa.int32())),  # three numbers for each medium
    pa.field(c.MEDIA_KINDS, pa.list_(pa.string())),
    pa.field(c.TENSOR_CHECKSUM, pa.int64()),  # of the tensors and the row, see checksum.py
)
_TOTAL_FIELDS = (
    pa.field(c.ATTEMPT, pa.int32()),
    pa.field(c.PROMPT_TOKENS, pa.int32()),
    pa.field(c.OUTPUT_TOKENS, pa.int32()),
)


def read_schema(manifest: ManifestSchema) -> pa.Schema:
    """The manifest's columns, the row's ordinal, the status, the error and the attempts."""
    return pa.schema([*manifest.fields, _ROW_FIELD, *STATUS_FIELDS])


def fetched_schema(manifest: ManifestSchema) -> pa.Schema:
    """Adds the bytes of each medium, or the path of a temporary file; null in error rows."""
    paths = pa.field(MEDIA_PATHS, pa.list_(pa.string()))
    return pa.schema([*_row_fields(manifest), MEDIA_BYTES_FIELD, paths])


def _row_fields(manifest: ManifestSchema) -> list[pa.Field]:
    """Those of `read_schema` without bytes of media."""
    return [field for field in read_schema(manifest) if field.name != MEDIA_BYTES]


def prepared_schema(manifest: ManifestSchema) -> pa.Schema:
    """Has receipts and tensors instead of the bytes; tensors are null in error rows."""
    return pa.schema([*_row_fields(manifest), *_RECEIPT_FIELDS, *_TENSOR_FIELDS])


def parsed_schema(manifest: ManifestSchema, task: Task = CAPTION) -> pa.Schema:
    """Has the answers instead of the tensors."""
    copies = copy_fields(manifest) if task.dedupe else ()
    answers = (*_TOTAL_FIELDS, *task.answer_fields, *copies)
    return pa.schema([*_row_fields(manifest), *_RECEIPT_FIELDS, *answers])


def answer_columns(task: Task) -> list[str]:
    """The columns that a row's answer fills; a copy has the same answer."""
    return [field.name for field in (*_TOTAL_FIELDS, *task.answer_fields)]


@dataclass(frozen=True)
class RowFailure:
    """Why a row failed: the values of its error columns.

    A message is stored without secrets, and cut, as `safe_text` does.
    """

    code: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", safe_text(self.message))

    @classmethod
    def of(cls, error: RowError) -> "RowFailure":
        """The failure of a row that raised this error."""
        return cls(error.code.value, error.message)


def media_uris(table: pa.Table, manifest: ManifestSchema) -> list[list[str | None]]:
    """The URIs of each row's media; none of a row that has failed, whose values may be broken."""
    column, uris = table[manifest.form], []
    for number, failure in enumerate(failures(table)):
        value = None if failure else column[number].as_py()
        if manifest.form == c.URI:
            uris.append([] if failure else [value])
        else:
            uris.append([medium and medium[c.MEDIA_URI] for medium in value or []])
    return uris


def failures(table: pa.Table) -> list[RowFailure | None]:
    """The failure of each row; None for rows that have not failed."""
    codes, messages = table[c.ERROR_CODE].to_pylist(), table[c.ERROR_MESSAGE].to_pylist()
    return [
        None if code is None else RowFailure(code, message)
        for code, message in zip(codes, messages, strict=True)
    ]


def failure_columns(row_failures: list[RowFailure | None]) -> dict[str, list[str | None]]:
    """The error columns of rows with these failures."""
    messages = [None if failure is None else failure.message for failure in row_failures]
    return {
        c.STATUS: [None if failure is None else c.STATUS_ERROR for failure in row_failures],
        c.ERROR_CODE: [None if failure is None else failure.code for failure in row_failures],
        c.ERROR_MESSAGE: messages,
    }


def replace_columns(table: pa.Table, columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Returns a table of the schema: with `columns` as given, and all others from the table.

    columns: lists of values, or Arrow columns of the schema's types.
    """
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        if isinstance(values, pa.ChunkedArray):
            arrays.append(values)
        elif values is not None:
            arrays.append(pa.array(values, field.type))
        else:
            arrays.append(convert_column(table[field.name], field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def ordinals(table: pa.Table) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Returns the file number and the index in that file of each row of a table."""
    rows = table[c.ROW].combine_chunks()
    files, indices = (pc.struct_field(rows, part).to_numpy() for part in (ROW_FILE, ROW_INDEX))
    return files, indices


def manifest_order(table: pa.Table) -> npt.NDArray[np.int64]:
    """Returns the indices that sort a table by the rows' ordinals."""
    files, indices = ordinals(table)
    return np.lexsort((indices, files))
