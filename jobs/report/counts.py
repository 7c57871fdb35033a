"""ResultCounts a result dataset: rows, errors, tokens and exact matches, by group.

Reads only the columns that it counts, one batch at a time.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from mediamill.model.urls import redact
from mediamill.schemas import columns as c

TRUTH = "truth"  # the user's column with the expected caption, if there is one
NO_GROUP = "all"


@dataclass(frozen=True)
class GroupCounts:
    """ResultCounts of one value of the group column.

    compared: ok rows that have a truth.
    matches: those whose text equals it.
    """

    name: str
    rows: int
    ok: int
    compared: int
    matches: int

    @property
    def match_rate(self) -> float | None:
        """Share of exact matches, 0..1; None when no row could be compared."""
        return self.matches / self.compared if self.compared else None


@dataclass(frozen=True)
class ResultCounts:
    """ResultCounts of a result dataset. errors: rows by error code, most frequent first."""

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
    def compared(self) -> int:
        return sum(group.compared for group in self.groups)

    @property
    def matches(self) -> int:
        return sum(group.matches for group in self.groups)


def open_result(output: str) -> ds.Dataset:
    """Opens a result folder (any fsspec URL) with its hive partitions as columns.

    Raises FileNotFoundError when the folder holds no Parquet file.
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
    keys = _partition_keys(result)
    if not keys:
        return result
    # The values as they are in the names of the folders: readers may take "00501" for a number.
    texts = ds.partitioning(pa.schema([(name, pa.string()) for name in keys]), flavor="hive")
    return ds.dataset(path, filesystem=handler, format="parquet", partitioning=texts)


def shown_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Returns the rows of a batch; values that Python does not have are replaced by texts."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError, pa.ArrowException):
        names, columns = batch.schema.names, [map(_shown, column) for column in batch.columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _shown(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return bytes(error.object).decode(errors="replace")
    except (ValueError, OverflowError, pa.ArrowException):
        return f"(a {value.type} that cannot be shown)"


def _partition_keys(result: ds.Dataset) -> list[str]:
    fragment = next(result.get_fragments())
    return list(ds.get_partition_keys(fragment.partition_expression))


def group_column(result: ds.Dataset) -> str | None:
    """Returns the first partition column of the result, or None."""
    return next(iter(_partition_keys(result)), None)


def count(result: ds.Dataset) -> ResultCounts:
    """ResultCounts all rows of a result, in constant memory."""
    group = group_column(result)
    columns = [c.STATUS, c.TEXT, c.ERROR_CODE, c.VISUAL_TOKENS, c.OUTPUT_TOKENS]
    columns += [c.MODEL, c.FINGERPRINT, c.RUN_ID]
    columns += [name for name in (group, TRUTH) if name and name in result.schema.names]
    counts: dict[str, Counter[str]] = {}
    errors: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    origins: dict[str, Counter[str]] = {c.MODEL: Counter(), c.FINGERPRINT: Counter()}
    runs: set[str] = set()
    for batch in result.to_batches(columns=columns):
        for row in shown_rows(batch):
            name = NO_GROUP if group is None else group_name(row[group])
            _count_row(row, counts.setdefault(name, Counter()), errors)
            for column in (c.VISUAL_TOKENS, c.OUTPUT_TOKENS):
                tokens[column] += row[column] or 0
            for column, values in origins.items():
                values[row[column] or ""] += 1
            runs.add(row[c.RUN_ID])
    return ResultCounts(
        groups=tuple(
            GroupCounts(name, n["rows"], n["ok"], n["compared"], n["matches"])
            for name, n in sorted(counts.items())
        ),
        errors=dict(errors.most_common()),
        visual_tokens=tokens[c.VISUAL_TOKENS],
        output_tokens=tokens[c.OUTPUT_TOKENS],
        models=tuple(name for name, _ in origins[c.MODEL].most_common()),
        fingerprints=tuple(name for name, _ in origins[c.FINGERPRINT].most_common()),
        runs=len(runs),
    )


def is_match(row: dict[str, Any]) -> bool | None:
    """Whether the text of an ok row equals its truth; None when there is nothing to compare."""
    if row[c.STATUS] != c.STATUS_OK or row.get(TRUTH) is None:
        return None
    return bool(row[c.TEXT] == row[TRUTH])


def group_name(value: Any) -> str:
    """The value of a partition as text; hive's null is "none"."""
    return "none" if value is None else str(value)


def _count_row(row: dict[str, Any], counts: Counter[str], errors: Counter[str]) -> None:
    counts["rows"] += 1
    if row[c.STATUS] != c.STATUS_OK:
        errors[row[c.ERROR_CODE] or "unknown"] += 1
        return
    counts["ok"] += 1
    match = is_match(row)
    if match is not None:
        counts["compared"] += 1
        counts["matches"] += match
