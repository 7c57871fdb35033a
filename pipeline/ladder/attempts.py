"""The attempts of a row in one run, as the column `attempt_history` has them between the stages.

The column is null in rows that are tried for the first time. Otherwise its last element is the
attempt that is being made, without a result; the write stage fills that in, and the run's id.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from mediamill.model.urls import safe_text
from mediamill.pipeline.records import ordinals
from mediamill.schemas import columns as c

Attempts = list[dict[str, Any]]
Ordinal = tuple[int, int]  # of a row: see records.ordinals
_MAX_MESSAGE = 300  # characters


def next_attempt(
    attempts: Attempts | None, code: str | None, message: str | None, changed: str | None = None
) -> Attempts:
    """Returns the attempts after another one has begun, since the one before ended like this.

    attempts: None if that was the first. changed: with what the new one is made.
    """
    *before, last = attempts or [_attempt(1, None)]
    message = None if message is None else safe_text(message, _MAX_MESSAGE)
    ended = {**last, "error_code": code, "error_message": message}
    return [*before, ended, _attempt(last["attempt"] + 1, changed)]


def _attempt(number: int, changed: str | None) -> dict[str, Any]:
    return {
        "attempt": number,
        "run_id": None,
        "error_code": None,
        "error_message": None,
        "changed": changed,
    }


def codes_of(attempts: Attempts | None) -> list[str]:
    """Returns the error codes of the attempts that have ended."""
    return [attempt["error_code"] for attempt in attempts or [] if attempt["error_code"]]


def with_attempts(table: pa.Table, values: Sequence[Attempts | None]) -> pa.Table:
    """Returns a table in which the rows have these attempts."""
    number = table.schema.get_field_index(c.ATTEMPT_HISTORY)
    field = table.schema.field(number)
    return table.set_column(number, field, pa.array(values, field.type))


def with_attempts_by_row(table: pa.Table, attempts: Mapping[Ordinal, Attempts]) -> pa.Table:
    """Returns a table whose rows have the attempts that are known of them."""
    if not attempts or not table.num_rows:
        return table
    return with_attempts(table, [attempts.get(row) for row in row_ordinals(table)])


def row_ordinals(table: pa.Table) -> Iterator[Ordinal]:
    """Yields the ordinal of each row of a table."""
    files, indices = ordinals(table)
    yield from zip(files.tolist(), indices.tolist(), strict=True)


def with_results(table: pa.Table, run: str) -> pa.Table:
    """Returns a table of rows that are done, in which the last attempt has the row's result.

    `attempt` counts all attempts of the run.
    """
    histories = table[c.ATTEMPT_HISTORY].to_pylist()
    if not any(histories):
        return table
    names = (c.ATTEMPT, c.ERROR_CODE, c.ERROR_MESSAGE)
    counts, codes, messages = (table[name].to_pylist() for name in names)
    for number, history in enumerate(histories):
        if history:
            history[-1]["attempt"] = max(history[-1]["attempt"], counts[number] or 1)
            counts[number] = history[-1]["attempt"]
            history[-1] |= {"error_code": codes[number], "error_message": messages[number]}
            histories[number] = [{**attempt, "run_id": run} for attempt in history]
    number = table.schema.get_field_index(c.ATTEMPT)
    field = table.schema.field(number)
    table = table.set_column(number, field, pa.array(counts, field.type))
    return with_attempts(table, histories)
