"""Turns the token ids of answers into the columns of the task; for captions, the text.

How the ids were made, and where the text goes, is not known here.
"""

from collections.abc import Callable, Sequence

import pyarrow as pa

from model.generation.stopping import before_stop
from pipeline.records import (
    RowFailure,
    failure_columns,
    failures,
    parsed_schema,
    replace_columns,
)
from schemas import columns as c
from schemas.errors import ErrorCode
from schemas.manifest import ManifestSchema


class Parse:
    """The stage. decode: token ids to text, without control tokens. stop: strings before which the
    text ends.
    """

    def __init__(
        self,
        manifest: ManifestSchema,
        decode: Callable[[Sequence[int]], str],
        stop: Sequence[str] = (),
    ) -> None:
        self._manifest = manifest
        self._decode = decode
        self._stop = stop

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `generated_schema` -> one of `parsed_schema`."""
        found: list[RowFailure | None] = failures(table)
        texts: list[str | None] = []
        for number, ids in enumerate(table[c.OUTPUT_IDS].to_pylist()):
            text = None
            if ids is not None:
                try:
                    text = before_stop(self._decode(ids), self._stop)
                except Exception as error:  # noqa: BLE001 - a tokenizer's own; one row's ids caused it
                    message = f"the answer's token ids are no text: {error}"
                    found[number] = RowFailure(ErrorCode.PARSE_INVALID.value, message)
            texts.append(text)
        columns = {**failure_columns(found), c.TEXT: texts}
        return replace_columns(table, columns, parsed_schema(self._manifest))
