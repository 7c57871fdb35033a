"""Runs a job annotate: the one place that knows the order of its steps.

    manifest -> split -> manifest of windows -> caption -> timeline [-> videos [-> summaries]]

    OUTPUT/_split/      one row for each video: its windows, or its error
    OUTPUT/_manifest/   one row for each window
    OUTPUT/windows/     the same, captioned
    OUTPUT/_videos/     one row for each video, with a prompt (annotate.summary_prompt)
    OUTPUT/videos/      one row for each video

Split, caption and summaries are runs of the pipeline, each with a separate ledger, so that a killed
job is resumed where it was. The steps between them write each file atomically.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.model.families.qwen2_vl.config import parse_config
from mediamill.pipeline.annotate.merge_videos import merge
from mediamill.pipeline.annotate.output_check import (
    VIDEO_MANIFEST,
    check_output,
    errors_name_output,
)
from mediamill.pipeline.annotate.redone_windows import videos_to_redo
from mediamill.pipeline.annotate.split import SplitVideos
from mediamill.pipeline.annotate.summaries import SummaryRules, max_prompt_tokens, prompt_table
from mediamill.pipeline.annotate.video_table import plain_table
from mediamill.pipeline.annotate.window_columns import (
    SPLIT_CODE,
    SPLIT_FOLDER,
    SPLIT_MESSAGE,
    VIDEOS_FOLDER,
    WINDOWS_FOLDER,
    check_columns,
    split_schema,
    without_split_error,
)
from mediamill.pipeline.annotate.window_manifest import make_windows
from mediamill.pipeline.checkpoint.checkpoint_hash import CheckpointHash
from mediamill.pipeline.checkpoint.machine_copy import local_folder
from mediamill.pipeline.coordinator.drain import Stop
from mediamill.pipeline.coordinator.reporting import RunFacts
from mediamill.pipeline.fetching import spool
from mediamill.pipeline.fetching.fetcher import FetchRules, allowed_roots
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.manifest.selection import ALL_ROWS, RowChoice
from mediamill.pipeline.plan import Plan, StepOverrides, check
from mediamill.pipeline.ray_cluster.cluster import ray_cluster
from mediamill.pipeline.records import RowFailure, failure_columns, failures, replace_columns
from mediamill.pipeline.retry.job_note import ANNOTATION, save_job
from mediamill.pipeline.retry.options import Retry
from mediamill.pipeline.run import Stages, run
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.pipeline.worker_stages import PrepareStage
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig, job_dict, load_job
from mediamill.schemas.job_columns import check_partition_by
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.progress import RAY, Progress
from mediamill.schemas.result import Summary

_WINDOW_MANIFEST = "_manifest"
_SPLIT_FILE_ROWS = 1024  # of one file of the split, at most
_FIXED_BATCH_ROWS, _SCENES_BATCH_ROWS = 64, 8  # a call of the split stage gets a fourth of them


class SplitStage:
    """Finds the windows of videos."""

    def __init__(
        self,
        job: JobConfig,
        schema: ManifestSchema,
        checkpoint: tuple[str, CheckpointHash],
        base: str,
        count: Callable[[int], None],
        **_: Any,
    ) -> None:
        from mediamill.pipeline.stages.fetch import Fetch

        rules = FetchRules.of(job, base)
        self._split = SplitVideos(
            schema, job.annotate, job.limits, rules, Fetch(schema, rules), count
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._split(table)


class WindowStage(PrepareStage):
    """Fetches and prepares windows; those of videos that could not be split are error rows."""

    def __call__(self, table: pa.Table) -> pa.Table:
        return super().__call__(with_failures(table))


def with_failures(table: pa.Table) -> pa.Table:
    """Returns the table with the split's errors as errors of the rows."""
    codes, messages = table[SPLIT_CODE].to_pylist(), table[SPLIT_MESSAGE].to_pylist()
    row_failures = failures(table)
    for index, (code, message) in enumerate(zip(codes, messages, strict=True)):
        if row_failures[index] is None and code is not None:
            row_failures[index] = RowFailure(code, message)
    return replace_columns(table, failure_columns(row_failures), table.schema)


SPLIT_STAGES = Stages(prepare=SplitStage, generate=None)
WINDOW_STAGES = Stages(prepare=WindowStage)
_WINDOWS_STEP = StepOverrides(lambda _, schema: without_split_error(schema))


@dataclass(frozen=True)
class AnnotationPlan:
    """An annotation that can begin. split: the plan of its first step. retry: see `Plan`."""

    job: JobConfig
    output: Place
    split: Plan
    retry: Retry | None = None

    @property
    def manifest(self) -> ManifestSchema:
        """The schema of the manifest of videos."""
        return self.split.manifest.schema


@dataclass(frozen=True)
class AnnotationSummary:
    """The summaries of an annotation's runs. merged: the number of new rows of videos."""

    output: str
    split: Summary
    windows: Summary
    merged: int = 0
    summaries: Summary | None = None

    @property
    def exit_code(self) -> int:
        """0 when all windows and summaries are ok, 3 when some are error rows."""
        return max(self.windows.exit_code, self.summaries.exit_code if self.summaries else 0)


def check_annotation(
    job: JobConfig, retry: Retry | None = None, will_run: bool = True
) -> AnnotationPlan:
    """Checks the job. Raises JobError with what was found and what was expected.

    retry, will_run: as of `check`.
    """
    output = storage.resolve(job.output)
    check_output(job, output)
    with errors_name_output(output):
        plan = check(
            _split_job(job),
            _split_overrides(job),
            will_run=will_run,
            retry=_split_retry(output, retry),
        )
        if (column := plan.manifest.schema.media_column) is not None:
            raise JobError(
                f"{storage.redact(job.manifest)}: found videos in the column '{column}', expected "
                "files or URLs (a column uri or media): a video is read once for each window"
            )
        given = job.annotate.windows == "given"
        check_columns(plan.manifest.schema, given, plan.manifest.url)
        check_partition_by(plan.manifest.schema, job.partition_by, storage.redact(job.manifest))
        if visible_files(output / _WINDOW_MANIFEST):  # before new videos are split in vain
            check(windows_job(job), _WINDOWS_STEP, will_run=will_run, retry=retry)
    return AnnotationPlan(job, output, plan, retry)


def annotate(
    annotation: AnnotationPlan,
    on_phase: Callable[[str], None] = lambda name: None,
    on_progress: Callable[[Progress], None] | None = None,
    address: str | None = None,
    stop: Stop | None = None,
    stages: Stages = WINDOW_STAGES,
    on_note: Callable[[str], None] | None = None,
    choice: RowChoice = ALL_ROWS,
) -> AnnotationSummary:
    """Makes what the output does not have yet.

    on_phase: called with the name of each step when it begins.
    stages: of the runs of the windows and the summaries.
    choice: the videos to do now; all windows of theirs are done.
    See `mediamill.pipeline.run` for the other arguments and the errors.
    """
    job, output, manifest = annotation.job, annotation.output, annotation.manifest
    stop, retry, shown = stop or Stop(), annotation.retry, storage.redact(output.url)
    if retry is not None:  # videos that can be split now have new windows
        retry = replace(retry, only=False)
    with errors_name_output(output), ExitStack() as stack:
        stack.enter_context(spool.hold_shared_folder())
        on_phase("split")
        if annotation.split.rows_left:  # then all steps have work, and share one Ray cluster
            if on_progress is not None:
                plan = annotation.split
                facts = RunFacts(plan.manifest.rows, plan.rows_done, 0, time.monotonic(), False)
                on_progress(facts.begun(RAY))
            stack.enter_context(ray_cluster(address))
        split_job, plan = _split_job(job), annotation.split
        split = run(split_job, plan, on_progress, address, SPLIT_STAGES, stop, on_note, choice)
        if retry is None or not retry.changed:
            save_job(output / SPLIT_FOLDER, job, split.run_id, ANNOTATION)
        make_windows(output / SPLIT_FOLDER, output / _WINDOW_MANIFEST, manifest)
        on_phase("windows")
        captions_job = windows_job(job)
        plan = check(captions_job, _WINDOWS_STEP, retry=retry)
        windows = run(captions_job, plan, on_progress, address, stages, stop, on_note)
        if not job.annotate.videos:
            return AnnotationSummary(shown, split, windows)
        on_phase("videos")
        folders = output / SPLIT_FOLDER, output / WINDOWS_FOLDER
        if job.annotate.summary_prompt is None:
            merged = merge(*folders, output / VIDEOS_FOLDER, plain_table(manifest, plan.task))
            return AnnotationSummary(shown, split, windows, merged)
        table = prompt_table(manifest, plan.task, _summary_rules(job, plan))
        merged = merge(*folders, output / VIDEO_MANIFEST, table)
        on_phase("summaries")
        summary_job = _summary_job(job)
        if retry is not None:
            also = videos_to_redo(output / WINDOWS_FOLDER, windows.run_id)
            retry = replace(retry, where=None, also=also)
        plan = check(summary_job, _summary_overrides(job), retry=retry)
        summaries = run(summary_job, plan, on_progress, address, stages, stop, on_note)
        return AnnotationSummary(shown, split, windows, merged, summaries)


def _derive(job: JobConfig, changes: Mapping[str, object]) -> JobConfig:
    """Returns the job with changes by dotted key. Raises JobError as a job file would."""
    return load_job(None, {**job_dict(job), **changes})


def _split_job(job: JobConfig) -> JobConfig:
    """Returns the job of the split, a run without an engine."""
    scenes = job.annotate.windows == "scenes"
    labels = dict(job.resources.labels.prepare)
    return _derive(
        job,
        {
            "output": f"{job.output.rstrip('/')}/{SPLIT_FOLDER}",
            "partition_by": [],
            "rows_per_file": _SPLIT_FILE_ROWS,
            "dedupe": False,
            "resources.device": "cpu",
            "resources.replicas": 1,
            "resources.batch_rows": _SCENES_BATCH_ROWS if scenes else _FIXED_BATCH_ROWS,
            "resources.labels": {"prepare": labels, "generate": labels},
        },
    )


def _split_retry(output: Place, retry: Retry | None) -> Retry | None:
    """Returns which videos are split again: none if the condition is about windows."""
    header = ledger.load(output / SPLIT_FOLDER).header or {}
    is_known = retry is None or retry.names_only(header.get("layout", {}).get("columns", ()))
    return retry if is_known else None


def _split_overrides(job: JobConfig) -> StepOverrides:
    config = job.annotate
    keys = {
        "fixed": ("window_s", "overlap_s", "min_s"),
        "scenes": ("scene_threshold", "min_s", "max_scene_s"),
        "given": (),
    }[config.windows]
    parts = {f"annotate.{key}": getattr(config, key) for key in ("windows", *keys, "max_windows")}
    return StepOverrides(lambda manifest, _: split_schema(manifest), lambda _: parts)


def windows_job(job: JobConfig) -> JobConfig:
    """Returns the job of the captions of windows."""
    output = job.output.rstrip("/")
    # The folders that rows may read follow from the user's manifest, not from the one made here.
    roots = allowed_roots(job, str(Path.cwd()))
    return _derive(
        job,
        {
            "manifest": f"{output}/{_WINDOW_MANIFEST}",
            "output": f"{output}/{WINDOWS_FOLDER}",
            "fetch.roots": None if roots is None else list(roots),
        },
    )


def _summary_job(job: JobConfig) -> JobConfig:
    output = job.output.rstrip("/")
    return _derive(
        job,
        {
            "manifest": f"{output}/{VIDEO_MANIFEST}",
            "output": f"{output}/{VIDEOS_FOLDER}",
            "partition_by": [],
            "prompt": None,
            "prompts": None,
            "json_schema": None,
            "dedupe": False,
            # The canary is asked the same as among the windows.
            "canary.prompt": job.canary.prompt or job.prompt,
        },
    )


def _summary_overrides(job: JobConfig) -> StepOverrides:
    part = {"annotate.summary_prompt": job.annotate.summary_prompt}
    return replace(_WINDOWS_STEP, fingerprint_parts=lambda parts: {**parts, **part})


def _summary_rules(job: JobConfig, plan: Plan) -> SummaryRules:
    from mediamill.model.text.tokenizer import Tokenizer

    folder = local_folder(plan.model.url, plan.checkpoint, job.resources.cache, weights=False)
    tokenizer = Tokenizer.load(folder)
    config = parse_config((folder / "config.json").read_bytes(), str(folder))

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode_plain(text))

    max_tokens = max_prompt_tokens(config.text.context_length, job.generation.max_new_tokens)
    max_tokens -= count_tokens(job.system or "")
    return SummaryRules(job.annotate.summary_prompt or "", max_tokens, count_tokens)
