"""Stages for real actors that answer with the row's id, and fail as the row's `prompt` says.

The prompts: "die in prepare" and "die in generate" end the process; "break" raises the error of a
broken device, "break once" the same in the first process only; "swap" is a wrong answer; "raise" is
an unexpected error; "fail" makes an error row; "no memory" makes one that smaller media may help,
"no memory once" the same at the first try, "unreachable" one that may pass; "slow" takes a second,
until a trace named "hurry" exists.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.pipeline.faults import BrokenEngineError, IdentityError
from mediamill.pipeline.records import (
    RowFailure,
    failure_columns,
    failures,
    parsed_schema,
    prepared_schema,
)
from mediamill.schemas import columns as c
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema

FAILURES = {"fail": "engine_failed", "no memory": "engine_oom", "unreachable": "fetch_failed"}


class _Stage:
    def __init__(
        self,
        job: JobConfig,
        schema: ManifestSchema,
        count: Callable[[int], None],
        **_options: Any,
    ) -> None:
        self._schema, self._count = schema, count
        self._traces = Path(job.output).parent / f"{Path(job.output).name}-traces"
        self._traces.mkdir(parents=True, exist_ok=True)

    def _first_time(self, event: str) -> bool:
        """Returns whether this is the first call with this event, in any process."""
        try:
            (self._traces / event.replace(" ", "-")).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _note(self, event: str, table: pa.Table) -> None:
        """Records an event with all rows of its call."""
        with (self._traces / "calls").open("a") as file:
            file.write(f"{event}: {' '.join(map(str, table[c.ID].to_pylist()))}\n")

    def _prompts(self, table: pa.Table) -> list[str | None]:
        """The prompts of the rows without an error."""
        prompts = table[c.PROMPT].to_pylist()
        return [
            None if failure else prompt
            for prompt, failure in zip(prompts, failures(table), strict=True)
        ]

    def _table(self, table: pa.Table, made: dict[str, list[Any]], schema: pa.Schema) -> pa.Table:
        columns = []
        for field in schema:
            if field.name in made:
                columns.append(pa.array(made[field.name], field.type))
            elif field.name in table.column_names:
                columns.append(table[field.name].cast(field.type))
            else:
                columns.append(pa.nulls(table.num_rows, field.type))
        return pa.Table.from_arrays(columns, schema=schema)


class FaultyPrepare(_Stage):
    """Takes rows as they were read, and returns them as if they were prepared."""

    def __call__(self, table: pa.Table) -> pa.Table:
        if "die in prepare" in self._prompts(table):
            self._note("died in prepare", table)
            os._exit(7)
        self._count(table.num_rows)
        return self._table(table, {}, prepared_schema(self._schema))


class FaultyGenerate(_Stage):
    """Takes prepared rows, and returns them as if they were parsed."""

    def __call__(self, table: pa.Table) -> pa.Table:
        prompts = self._prompts(table)
        if "die in generate" in prompts:
            self._note("died in generate", table)
            os._exit(7)
        if "break" in prompts or ("break once" in prompts and self._first_time("break once")):
            raise BrokenEngineError("the GPU cannot be used any more: CUDA error: injected")
        if "swap" in prompts:
            raise IdentityError("an answer came back to the wrong row: injected")
        if "raise" in prompts:
            raise ValueError("unexpected: injected")
        if "slow" in prompts and not (self._traces / "hurry").exists():
            time.sleep(1)
        errors = failures(table)
        for number, prompt in enumerate(prompts):
            if prompt in FAILURES:
                errors[number] = RowFailure(FAILURES[prompt], "injected")
            if prompt == "no memory once" and table[c.ATTEMPT_HISTORY][number].as_py() is None:
                errors[number] = RowFailure("engine_oom", "injected")
        self._count(table.num_rows)
        texts = [
            None if failure else str(name)
            for name, failure in zip(table[c.ID].to_pylist(), errors, strict=True)
        ]
        if table.num_rows:
            self._note("answered", table)
        made = {**failure_columns(errors), c.TEXT: texts, c.ATTEMPT: [1] * table.num_rows}
        if any(prompt and prompt.startswith("no memory") for prompt in prompts):
            made[c.VISUAL_TOKENS] = [12] * table.num_rows
        return self._table(table, made, parsed_schema(self._schema))
