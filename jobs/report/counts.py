"""Turns a result dataset into counts: rows, errors and exact matches, by group.

Reads the columns it counts and no others, a batch at a time. Knows nothing of media or pages.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from mediamill.model.urls import redact
from mediamill.schemas import columns as c

TRUTH = "truth"  # the pass-through column that a caption is compared with, where there is one
NO_GROUP = "all"


@dataclass(frozen=True)
class GroupCounts:
    """One value of the group column. judged: ok rows with a truth; right: those that say it."""

    name: str
    rows: int
    ok: int
    judged: int
    right: int

    @property
    def rate(self) -> float | None:
        """Share of exact matches, 0..1; None where nothing could be compared."""
        return self.right / self.judged if self.judged else None


@dataclass(frozen=True)
class Counts:
    """What a result dataset holds. errors: rows by error code, most frequent first."""

    groups: tuple[GroupCounts, ...]
    errors: dict[str, int]
    visual_tokens: int
    output_tokens: int
    models: tuple[str, ...]
    fingerprints: tuple[str, ...]
    runs: int

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def ok(self) -> int:
        return sum(group.ok for group in self.groups)

    @property
    def judged(self) -> int:
        return sum(group.judged for group in self.groups)

    @property
    def right(self) -> int:
        return sum(group.right for group in self.groups)


def open_result(output: str) -> ds.Dataset:
    """Open a result folder (any fsspec URL) with its hive partitions as columns.

    Raises FileNotFoundError, naming the folder, where it holds no Parquet file.
    """
    shown = redact(output)
    files, path = fsspec.core.url_to_fs(output)
    handler = pafs.PyFileSystem(pafs.FSSpecHandler(files))
    try:
        result = ds.dataset(path, filesystem=handler, format="parquet", partitioning="hive")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{shown}: no result here; expected Parquet files") from error
    if not result.files:
        raise FileNotFoundError(f"{shown}: no result here; expected Parquet files")
    return result


def group_column(result: ds.Dataset) -> str | None:
    """The column to group by: the first that partitions the result, or None."""
    fragment = next(result.get_fragments())
    return next(iter(ds.get_partition_keys(fragment.partition_expression)), None)


def count(result: ds.Dataset) -> Counts:
    """Count every row of the result once, in memory that does not grow with the rows."""
    group = group_column(result)
    wanted = [c.STATUS, c.TEXT, c.ERROR_CODE, c.VISUAL_TOKENS, c.OUTPUT_TOKENS]
    wanted += [c.MODEL, c.FINGERPRINT, c.RUN_ID]
    wanted += [name for name in (group, TRUTH) if name and name in result.schema.names]
    counts: dict[str, Counter[str]] = {}
    errors: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    said_by: dict[str, Counter[str]] = {c.MODEL: Counter(), c.FINGERPRINT: Counter()}
    runs: set[str] = set()
    for batch in result.to_batches(columns=wanted):
        for row in batch.to_pylist():
            name = NO_GROUP if group is None else group_name(row[group])
            _count_row(row, counts.setdefault(name, Counter()), errors)
            for column in (c.VISUAL_TOKENS, c.OUTPUT_TOKENS):
                tokens[column] += row[column] or 0
            for column, seen in said_by.items():
                seen[row[column] or ""] += 1
            runs.add(row[c.RUN_ID])
    return Counts(
        groups=tuple(
            GroupCounts(name, n["rows"], n["ok"], n["judged"], n["right"])
            for name, n in sorted(counts.items())
        ),
        errors=dict(errors.most_common()),
        visual_tokens=tokens[c.VISUAL_TOKENS],
        output_tokens=tokens[c.OUTPUT_TOKENS],
        models=tuple(name for name, _ in said_by[c.MODEL].most_common()),
        fingerprints=tuple(name for name, _ in said_by[c.FINGERPRINT].most_common()),
        runs=len(runs),
    )


def is_right(row: dict[str, Any]) -> bool | None:
    """Whether an ok row says exactly its truth; None where there is nothing to compare."""
    if row[c.STATUS] != c.STATUS_OK or row.get(TRUTH) is None:
        return None
    return bool(row[c.TEXT] == row[TRUTH])


def group_name(value: Any) -> str:
    """A partition's value as a reader sees it; hive's null is "none"."""
    return "none" if value is None else str(value)


def _count_row(row: dict[str, Any], counts: Counter[str], errors: Counter[str]) -> None:
    counts["rows"] += 1
    if row[c.STATUS] != c.STATUS_OK:
        errors[row[c.ERROR_CODE] or "unknown"] += 1
        return
    counts["ok"] += 1
    right = is_right(row)
    if right is not None:
        counts["judged"] += 1
        counts["right"] += right
