"""Measures rows: fetches and prepares them as the job would, without its engine and without Ray."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mediamill.pipeline.annotate.annotate import with_failures
from mediamill.pipeline.annotate.split import SplitVideos
from mediamill.pipeline.annotate.window_columns import DURATION_S, WINDOWS, window_schema
from mediamill.pipeline.annotate.window_manifest import windows_of
from mediamill.pipeline.fetching.fetcher import FetchRules
from mediamill.pipeline.manifest.read_rows import with_ordinals
from mediamill.pipeline.records import MEDIA_BYTES, MEDIA_PATHS, failures
from mediamill.pipeline.row_values import row_values
from mediamill.pipeline.stages.fetch import Fetch
from mediamill.pipeline.stages.prepare import Prepare
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import convert_table
from mediamill.schemas.errors import RowError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema, check_manifest_schema
from mediamill.schemas.task import Task

_WINDOWS_PER_VIDEO = 4  # that are measured, of a video with more

Counts = Mapping[str, float]


@dataclass(frozen=True)
class MeasuredRow:
    """What one row of the manifest takes; of a video to annotate, all of its windows together.

    units: rows of the result. bytes: of its media, as fetched.
    prompt_tokens: of all prompts, visual tokens included. longest: of the longest prompt, with the
    longest text that follows it.
    errors: rows of the result by error code. message: of the first error.
    fetch_s, prepare_s: its share of the time of its table.
    content: a hash of what the model would be given; empty for an error.
    parts: the share of its units that was measured.
    """

    id: str
    units: float = 1.0
    bytes: float = 0.0
    visual_tokens: float = 0.0
    prompt_tokens: float = 0.0
    longest: int = 0
    errors: Counts = field(default_factory=dict)
    message: str = ""
    fetch_s: float = 0.0
    prepare_s: float = 0.0
    content: str = ""
    parts: float = 1.0


@dataclass(frozen=True)
class MeasuredTable:
    """The rows of a table, and the prepared tables, with the number in the table of each row.

    weights: rows of the result that each prepared row stands for.
    """

    rows: Sequence[MeasuredRow]
    prepared: Sequence[pa.Table]
    numbers: Sequence[int]
    weights: Sequence[float]


class Measurer(Protocol):
    """Measures the rows of a manifest."""

    def measure(self, table: pa.Table) -> MeasuredTable:
        """Takes a table of `read_schema`."""

    def close(self) -> None:
        """Ends its processes."""


class RowMeasurer:
    """Measures rows that each give one row of the result."""

    def __init__(
        self, manifest: ManifestSchema, job: JobConfig, task: Task, checkpoint: Path
    ) -> None:
        """checkpoint: a folder of this machine. Raises ModelError."""
        base = str(Path.cwd())
        self._fetch = Fetch(manifest, FetchRules.of(job, base))
        self._prepare = Prepare(manifest, job, task, checkpoint, lambda _: None, base)

    def close(self) -> None:
        """See `Measurer`."""
        self._prepare.close()

    def measure(self, table: pa.Table) -> MeasuredTable:
        """See `Measurer`."""
        prepared: list[pa.Table] = []
        sizes: list[float] = []
        prepare_s = 0.0
        started = time.monotonic()
        for part in self._fetch.parts(table):
            sizes += _sizes(part)
            before = time.monotonic()
            prepared.append(self._prepare(part))
            prepare_s += time.monotonic() - before
            del part
        fetch_s = time.monotonic() - started - prepare_s
        each = (fetch_s / max(1, len(sizes)), prepare_s / max(1, len(sizes)))
        whole = pa.concat_tables(prepared)
        rows = [_measured(whole, number, sizes[number], each) for number in range(len(sizes))]
        return MeasuredTable(rows, prepared, range(len(rows)), [1.0] * len(rows))


class WindowMeasurer:
    """Measures videos to annotate: splits them, and measures some windows of each."""

    def __init__(
        self,
        manifest: ManifestSchema,
        job: JobConfig,
        windows_job: JobConfig,
        task: Task,
        checkpoint: Path,
        rng: np.random.Generator,
    ) -> None:
        """windows_job: the job of the captions of windows. Raises ModelError."""
        rules = FetchRules.of(job, str(Path.cwd()))
        self._manifest, self._rng = manifest, rng
        self._split = SplitVideos(
            manifest, job.annotate, job.limits, rules, Fetch(manifest, rules), lambda _: None
        )
        self._schema = window_schema(manifest)
        self._windows = check_manifest_schema(self._schema, "the windows")
        self._rows = RowMeasurer(self._windows, windows_job, task, checkpoint)

    def close(self) -> None:
        """See `Measurer`."""
        self._split.close()
        self._rows.close()

    def measure(self, table: pa.Table) -> MeasuredTable:
        """See `Measurer`."""
        started = time.monotonic()
        split = self._split(table)
        split_s = (time.monotonic() - started) / max(1, table.num_rows)
        chosen: list[dict[str, Any]] = []
        owners: list[int] = []
        units: list[int] = []
        copied = [name for name in self._schema.names if name in split.column_names]
        for number, failure in enumerate(failures(split)):
            status = c.STATUS_OK if failure is None else c.STATUS_ERROR
            names = (c.ID, c.ERROR_CODE, c.ERROR_MESSAGE, WINDOWS, DURATION_S)
            video = row_values(split, number, names) | {c.STATUS: status}
            media = None
            with suppress(RowError):  # then the row has this error already
                media = row_values(split, number, [self._manifest.form])[self._manifest.form]
            video |= {self._manifest.form: media}
            own = row_values(split, number, [n for n in copied if n not in (c.ID, c.MEDIA)])
            windows = list(windows_of(video, self._manifest))
            units.append(len(windows))
            size = min(len(windows), _WINDOWS_PER_VIDEO)
            for place in sorted(self._rng.choice(len(windows), size, replace=False).tolist()):
                chosen.append(own | windows[place])
                owners.append(number)
        rows = pa.Table.from_pylist(chosen, self._schema)
        rows = self._windows.normalize(convert_table(rows, self._schema))
        rows = with_failures(with_ordinals(rows, 0, np.arange(rows.num_rows)))
        measured = self._rows.measure(rows)
        ids = split[c.ID].to_pylist()
        videos = [
            _video(str(ids[number]), units[number], parts, split_s)
            for number, parts in enumerate(_grouped(measured.rows, owners, len(units)))
        ]
        counts = Counter(owners)
        weights = [units[owner] / counts[owner] for owner in owners]
        return MeasuredTable(videos, measured.prepared, owners, weights)


def _grouped(
    rows: Sequence[MeasuredRow], owners: Sequence[int], count: int
) -> list[list[MeasuredRow]]:
    grouped: list[list[MeasuredRow]] = [[] for _ in range(count)]
    for row, owner in zip(rows, owners, strict=True):
        grouped[owner].append(row)
    return grouped


def _video(name: str, units: int, parts: Sequence[MeasuredRow], split_s: float) -> MeasuredRow:
    factor = units / max(1, len(parts))

    def scaled(value: Callable[[MeasuredRow], float]) -> float:
        return factor * sum(value(part) for part in parts)

    errors: dict[str, float] = {}
    for part in parts:
        for code, count in part.errors.items():
            errors[code] = errors.get(code, 0.0) + factor * count
    return MeasuredRow(
        name,
        units,
        max((part.bytes for part in parts), default=0.0),  # a video is fetched once
        scaled(lambda part: part.visual_tokens),
        scaled(lambda part: part.prompt_tokens),
        max((part.longest for part in parts), default=0),
        errors,
        next((part.message for part in parts if part.message), ""),
        scaled(lambda part: part.fetch_s),
        scaled(lambda part: part.prepare_s) + split_s,
        "",
        len(parts) / max(1, units),
    )


def _sizes(table: pa.Table) -> list[float]:
    """The bytes of each row's media."""
    sizes = []
    for data, paths in zip(table[MEDIA_BYTES], table[MEDIA_PATHS].to_pylist(), strict=True):
        size = 0
        for number in range(len(data) if data.is_valid else 0):
            content = data[number]
            size += len(content.as_buffer()) if content.is_valid else 0
        for path in paths or ():
            if path is not None:
                with suppress(OSError):
                    size += Path(path).stat().st_size
        sizes.append(float(size))
    return sizes


def _measured(
    table: pa.Table, number: int, size: float, seconds: tuple[float, float]
) -> MeasuredRow:
    names = (c.ID, c.ERROR_CODE, c.ERROR_MESSAGE, c.VISUAL_TOKENS, c.SHA256)
    row_id, code, message, visual, sha256 = (table[name][number].as_py() for name in names)
    prompts = table[c.INPUT_IDS][number].as_py() or []
    texts = table[c.CONTINUATIONS][number].as_py() or []
    lengths = [len(ids) for ids in prompts]
    content = ""
    if code is None:
        grid = table[c.GRID_THW][number].as_py()
        content = hashlib.blake2b(
            repr((sha256, grid, prompts)).encode(), digest_size=16
        ).hexdigest()
    return MeasuredRow(
        str(row_id),
        1.0,
        size,
        float(visual or 0),
        float(sum(lengths)),
        max(lengths, default=0) + max((len(ids) for ids in texts), default=0),
        {} if code is None else {code: 1.0},
        message or "",
        *seconds,
        content,
    )
