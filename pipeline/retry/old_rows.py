"""The old rows of those that a run does again, and the visible files that hold them."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mediamill.pipeline.ledger.state import Counts
from mediamill.pipeline.retry import chosen_rows
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import take_rows


@dataclass(frozen=True)
class OldRows:
    """Old values of some rows, by id."""

    rows: dict[Any, dict[str, Any]]

    @classmethod
    def read(cls, output: Place, run: str, ids: pa.ChunkedArray) -> "OldRows":
        """Looks up the ids in the table of the run."""
        return cls(chosen_rows.find_rows(output, run, ids))

    def has(self, ids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """Returns which of the rows are done again."""
        return np.array([row_id in self.rows for row_id in ids.to_pylist()], np.bool_)

    def counts(self, ids: pa.ChunkedArray) -> Counts:
        """Returns the counts of these old rows."""
        counts = Counts()
        for row_id in ids.to_pylist():
            row = self.rows[row_id]
            names = (c.PROMPT_TOKENS, c.VISUAL_TOKENS, c.OUTPUT_TOKENS)
            prompt, visual, output = (row[name] or 0 for name in names)
            code = row[c.ERROR_CODE]
            errors = {} if code is None else {code: 1}
            counts.add(Counts(int(code is None), errors, prompt, visual, output))
        return counts

    def by_file(self, table: pa.Table, changed: str | None) -> Iterator[tuple[str, pa.Table]]:
        """Yields the files that hold the old rows, sorted, with their new rows.

        The new rows count on the attempts, and list them.
        """
        if not table.num_rows:
            return
        table = self._with_attempts(table, changed)
        files = defaultdict[str, list[int]](list)
        for number, row_id in enumerate(table[c.ID].to_pylist()):
            files[self.rows[row_id][chosen_rows.FILE]].append(number)
        for name in sorted(files):
            yield name, take_rows(table, np.array(files[name], np.int64))

    def _with_attempts(self, table: pa.Table, changed: str | None) -> pa.Table:
        names = [c.ID, c.ATTEMPT, c.RUN_ID, c.ERROR_CODE, c.ERROR_MESSAGE, c.ATTEMPT_HISTORY]
        known = [name for name in names if name in table.column_names]
        attempts, histories = [], []
        for new in table.select(known).to_pylist():
            old = self.rows[new[c.ID]]
            old_attempts = old[c.ATTEMPT] or 1
            before = old[c.ATTEMPT_HISTORY] or [_attempt(old, old_attempts, None)]
            history = new.get(c.ATTEMPT_HISTORY) or [_attempt(new, new.get(c.ATTEMPT) or 1, None)]
            for attempt in history:
                attempt["attempt"] += old_attempts
                attempt["changed"] = _joined(changed, attempt["changed"])
            attempts.append(history[-1]["attempt"])
            histories.append([*before, *history])
        for name, values in ((c.ATTEMPT, attempts), (c.ATTEMPT_HISTORY, histories)):
            number = table.schema.get_field_index(name)
            if number >= 0:
                field = table.schema.field(number)
                table = table.set_column(number, field, pa.array(values, field.type))
        return table


def _joined(*parts: str | None) -> str | None:
    return ", ".join(part for part in parts if part) or None


def _attempt(row: dict[str, Any], attempt: int, changed: str | None) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "run_id": row.get(c.RUN_ID),
        "error_code": row.get(c.ERROR_CODE),
        "error_message": row.get(c.ERROR_MESSAGE),
        "changed": changed,
    }
