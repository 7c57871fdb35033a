"""Stages that return valid tables and do no work, to measure the driver alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from mediamill.pipeline.records import parsed_schema, prepared_schema
from mediamill.pipeline.run import Stages
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import ManifestSchema

PATCH_BYTES = 6 * 1024  # of a row, about as many as a small picture has
TOKENS = 24
TEXT = "a picture that nobody looked at, described in about as many words as a caption has"


class Prepared:
    """Fills in patches and token ids of each row."""

    def __init__(self, schema: ManifestSchema, count: Callable[[int], None], **_: Any) -> None:
        self._schema = prepared_schema(schema)
        self._count = count

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.num_rows
        ids = np.tile(np.arange(TOKENS, dtype=np.int32), rows)
        offsets = np.arange(rows + 1, dtype=np.int32)
        prompts = pa.ListArray.from_arrays(pa.array(offsets * TOKENS), pa.array(ids))
        made = {
            c.VISUAL_TOKENS: _same(8, rows, pa.int32()),
            c.SHA256: _same("0" * 64, rows, pa.string()),
            c.INPUT_IDS: pa.ListArray.from_arrays(pa.array(offsets), prompts),
            c.PATCHES: _same(bytes(PATCH_BYTES), rows, pa.large_binary()),
        }
        self._count(rows)
        return _table(table, made, self._schema)


class Answered:
    """Fills in the same text for each row."""

    def __init__(self, schema: ManifestSchema, count: Callable[[int], None], **_: Any) -> None:
        self._schema = parsed_schema(schema)
        self._count = count

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.num_rows
        made = {
            c.ATTEMPT: _same(1, rows, pa.int32()),
            c.FINISH_REASON: _same("stop", rows, pa.string()),
            c.PROMPT_TOKENS: _same(TOKENS, rows, pa.int32()),
            c.OUTPUT_TOKENS: _same(16, rows, pa.int32()),
            c.MEAN_LOGPROB: _same(-0.5, rows, pa.float64()),
            c.TEXT: _same(TEXT, rows, pa.string()),
        }
        self._count(rows)
        return _table(table, made, self._schema)


STAGES = Stages(prepare=Prepared, generate=Answered)


def _same(value: Any, rows: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), rows)


def _table(table: pa.Table, made: dict[str, pa.Array], schema: pa.Schema) -> pa.Table:
    """The table's columns and the made ones, nulls for the rest."""
    arrays = [
        made[field.name]
        if field.name in made
        else table[field.name]
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
