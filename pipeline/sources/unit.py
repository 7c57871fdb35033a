"""What every source is to the builder: units that are read one by one, as tables of one schema."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from mediamill.pipeline.sources.arrow_texts import text_array
from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError

BATCH_ROWS, BATCH_CHARACTERS = 8192, 16 * 1024 * 1024
# In the tables, beside the columns of the manifest: names that a table has of the stages.
_TAKEN = (*c.RESULT_COLUMNS, *c.IN_FLIGHT_COLUMNS, "media_bytes", "media_paths")


@dataclass(frozen=True)
class Unit:
    """A part of a source that is read at once: a shard, a table, some folders of a listing.

    name: does not change between runs.
    version: of its content; an unchanged unit is not read again. "" for one that every run reads.
    read: yields tables of the source's schema, and counts what it leaves out.
    frozen: whether a change of its content makes the rows of earlier runs wrong.
    """

    name: str
    version: str
    read: Callable[[LeftOut], Iterator[pa.Table]]
    frozen: bool = False


@dataclass(frozen=True)
class Source:
    """A source of manifest rows.

    kind: in words, for messages. url: absolute.
    schema: of the rows, with `id`, and `uri` or `media`.
    units: in the order of the manifest's rows.
    settings: what must not change between the runs that make one manifest.
    given_ids: whether ids are the user's own, so that equal ones are a mistake.
    notes: what was assumed, in sentences.
    left_out: what is not in any unit.
    archives: the folder below which units are archives of their names, as a URL; None for others.
    """

    kind: str
    url: str
    schema: pa.Schema
    units: Iterable[Unit]
    settings: dict[str, Any] = field(default_factory=dict)
    given_ids: bool = False
    notes: Sequence[str] = ()
    left_out: LeftOut = field(default_factory=LeftOut)
    archives: str | None = None


def unclash(name: str, taken: Iterable[str] = ()) -> str:
    """A name for a column of the user's that is none of the job's columns."""
    others = set(taken)
    plain = name if name not in _TAKEN else f"source_{name}"
    number, free = 2, plain
    while free in others:
        free = f"{plain}_{number}"
        number += 1
    return free


def tables(
    rows: Iterable[tuple[str | None, ...]], schema: pa.Schema, size: int = BATCH_ROWS
) -> Iterator[pa.Table]:
    """Yields tuples of texts as tables of `schema`, whose columns are texts."""
    batch: list[tuple[str | None, ...]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(value) for value in row if value is not None)
        if len(batch) >= size or characters >= BATCH_CHARACTERS:
            yield _table(batch, schema)
            batch, characters = [], 0
    if batch:
        yield _table(batch, schema)


def _table(rows: list[tuple[str | None, ...]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_arrays(list(map(text_array, zip(*rows, strict=True))), schema=schema)


def expect_rows(source: str, rows: int, left_out: LeftOut) -> None:
    """Raises JobError for a source without a single row."""
    if not rows:
        reasons = "; ".join(left_out.lines()[:5])
        raise JobError(
            f"{source}: found no picture and no video, expected at least one"
            + (f": {reasons}" if reasons else "")
        )
