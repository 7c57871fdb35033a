"""Previews a job: a few rows through its real stages, in this process, without its output.

Starts no Ray. The output is neither read nor written; it may be one that the job would refuse.
"""

import tempfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mediamill.model.errors import ModelError
from mediamill.pipeline.annotate.annotate import check_annotation, windows_job, with_failures
from mediamill.pipeline.annotate.split import SplitVideos
from mediamill.pipeline.annotate.window_columns import DURATION_S, WINDOWS, window_schema
from mediamill.pipeline.annotate.window_manifest import windows_of
from mediamill.pipeline.checkpoint.machine_copy import local_folder
from mediamill.pipeline.fetching.fetcher import FetchRules
from mediamill.pipeline.forecast.this_machine import ThisMachine
from mediamill.pipeline.inspect.answers import AnswerLayout, layout_of
from mediamill.pipeline.manifest.read_rows import with_ordinals
from mediamill.pipeline.plan import Plan, check
from mediamill.pipeline.preview.choose import choose_rows
from mediamill.pipeline.preview.rows import PreviewRow, RowStages, StageSeconds
from mediamill.pipeline.ray_cluster.pool_sizes import size_pools
from mediamill.pipeline.records import failures
from mediamill.pipeline.row_values import row_values
from mediamill.pipeline.stages.fetch import Fetch
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import convert_table
from mediamill.schemas.errors import JobError, RowError
from mediamill.schemas.job import JobConfig, job_dict
from mediamill.schemas.manifest import ManifestSchema, check_manifest_schema
from mediamill.schemas.result import result_schema

MILLION = 1_000_000
MAX_ROWS = 64  # their pictures are in memory


@dataclass(frozen=True)
class Preview:
    """What a preview shows.

    total: rows of the manifest. unit: what a row of the result is.
    load_s: to load the model's libraries and its weights. workers, replicas: of a run here.
    """

    rows: Sequence[PreviewRow]
    total: int
    unit: str
    layout: AnswerLayout
    seconds: StageSeconds
    load_s: float
    workers: int
    replicas: int
    on_gpu: bool
    notes: tuple[str, ...]

    @property
    def row_seconds(self) -> float:
        """Seconds of this machine for one such row, about, when it runs many."""
        count = max(1, len(self.rows))
        prepare = self.seconds.prepare / count / max(1, self.workers)
        fetch = self.seconds.fetch / count / max(1, self.workers)
        generate = self.seconds.generate / count / max(1, self.replicas)
        # An engine on a CPU and the decoders take turns on the same cores.
        work = max(prepare, generate) if self.on_gpu else prepare + generate
        return max(fetch, work)

    @property
    def million_hours(self) -> float:
        """Hours for a million such rows."""
        return self.row_seconds * MILLION / 3600


def preview(
    job: JobConfig, count: int, on_phase: Callable[[str], None] = lambda _: None
) -> Preview:
    """Returns `count` rows of the manifest after all stages; fewer if there are not so many.

    job: its manifest is a Parquet one. on_phase: called with what is done next.
    Raises JobError for a job that cannot work, whatever its output.
    """
    on_phase("checking the job, the manifest and the model")
    nowhere = str(Path(tempfile.gettempdir()) / f"mediamill-preview-{uuid.uuid4().hex}")
    job = job.model_copy(update={"output": nowhere})
    pools = size_pools(job.resources, [ThisMachine.measure().node])
    notes = []
    if job.canary.uri is not None:
        notes.append("the canary is not asked in a preview")
    # Not as a context, which would wait for a call of the engine when the preview is interrupted.
    threads = ThreadPoolExecutor(MAX_ROWS, "preview")
    try:
        if job.job == "annotate":
            plan = check_annotation(job, will_run=False).split
            schema = check_manifest_schema(window_schema(plan.manifest.schema), "the windows")
            captions = windows_job(job)
        else:
            plan = check(job, will_run=False)
            schema, captions = plan.manifest.schema, job
        folder = local_folder(plan.model.url, plan.checkpoint, job.resources.cache)
        with closing(RowStages(schema, captions, plan.task, folder, pools, threads)) as stages:
            on_phase("choosing rows")
            table, strata = choose_rows(plan.manifest, count, job.seed, job.video)
            if job.job == "annotate":
                on_phase("splitting videos")
                table, strata = _windows(table, strata, plan, job, schema, count)
                notes.append("the rows of whole videos and their summaries are left out")
            rows, seconds = stages.run(table, on_phase)
    except ModelError as error:
        raise JobError(str(error)) from error
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    return Preview(
        [replace(row, stratum=name) for row, name in zip(rows, strata, strict=True)],
        plan.manifest.rows,
        "window" if job.job == "annotate" else "row",
        _layout(plan, job, schema),
        seconds,
        stages.load_s,
        pools.prepare_workers,
        pools.replicas,
        pools.replica_gpus > 0,
        (*plan.notes, *notes),
    )


def _layout(plan: Plan, job: JobConfig, schema: ManifestSchema) -> AnswerLayout:
    keys = job_dict(job)
    parts = {name: keys[name] for name in ("job", "prompt", "prompts", "system")}
    return layout_of(result_schema(schema, plan.task).names, {**plan.bound, "parts": parts})


def _windows(
    table: pa.Table,
    strata: Sequence[str],
    plan: Plan,
    job: JobConfig,
    windows: ManifestSchema,
    count: int,
) -> tuple[pa.Table, list[str]]:
    """Splits videos, and returns random windows of each in turn, `count` in all."""
    manifest, rng = plan.manifest.schema, np.random.default_rng(job.seed)
    schema = window_schema(manifest)
    rules = FetchRules.of(job, str(Path.cwd()))
    fetch = Fetch(manifest, rules)
    with closing(
        SplitVideos(manifest, job.annotate, job.limits, rules, fetch, lambda _: None)
    ) as stage:
        split = stage(table)
    copied = [name for name in schema.names if name in split.column_names]
    copied = [name for name in copied if name not in (c.ID, c.MEDIA)]
    queues: list[list[dict[str, Any]]] = []
    for number, failure in enumerate(failures(split)):
        names = (c.ID, c.ERROR_CODE, c.ERROR_MESSAGE, WINDOWS, DURATION_S)
        status = c.STATUS_OK if failure is None else c.STATUS_ERROR
        video = row_values(split, number, names) | {c.STATUS: status}
        try:
            video |= row_values(split, number, [manifest.form])
        except RowError:  # then the row has this error already
            video |= {manifest.form: None}
        own = row_values(split, number, copied)
        rows = [own | window for window in windows_of(video, manifest)]
        queues.append([rows[place] for place in rng.permutation(len(rows)).tolist()])
    chosen: list[tuple[int, dict[str, Any]]] = []
    while len(chosen) < count and any(queues):
        for number, queue in enumerate(queues):
            if queue and len(chosen) < count:
                chosen.append((number, queue.pop()))
    chosen.sort(key=lambda entry: (entry[0], str(entry[1][c.ID])))
    made = pa.Table.from_pylist([row for _, row in chosen], schema)
    made = windows.normalize(convert_table(made, schema))
    made = with_failures(with_ordinals(made, 0, np.arange(made.num_rows)))
    return made, [strata[number] for number, _ in chosen]
