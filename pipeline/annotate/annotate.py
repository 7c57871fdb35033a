"""Runs a job annotate: the one place that knows the order of its steps.

    manifest -> split -> manifest of windows -> caption -> timeline [-> videos [-> summaries]]

    OUTPUT/_split/      one row for each video: its windows, or what is wrong with it
    OUTPUT/_manifest/   one row for each window
    OUTPUT/windows/     the same, captioned
    OUTPUT/_videos/     one row for each video, with a prompt (annotate.summary_prompt)
    OUTPUT/videos/      one row for each video

Split, caption and summaries are runs of the pipeline, each with a ledger of its own: what is killed
goes on where it was. The steps between them make files whole or not at all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.model.families.qwen2_vl.config import parse_config
from mediamill.pipeline.annotate.split import Split, SplitRules
from mediamill.pipeline.annotate.summaries import SummaryRules, prompt_room, videos_to_ask
from mediamill.pipeline.annotate.video_table import merge, plain_videos
from mediamill.pipeline.annotate.window_columns import (
    SPLIT_CODE,
    SPLIT_FOLDER,
    SPLIT_MESSAGE,
    STEPS,
    VIDEOS_FOLDER,
    WINDOWS_FOLDER,
    check_columns,
    split_schema,
    without_hidden,
)
from mediamill.pipeline.annotate.window_manifest import make_windows
from mediamill.pipeline.annotate.window_rules import WindowRules
from mediamill.pipeline.checkpoint.content_hash import CheckpointHash
from mediamill.pipeline.checkpoint.local_copy import local_folder
from mediamill.pipeline.coordinator.drain import Stop
from mediamill.pipeline.fetching import spool
from mediamill.pipeline.fetching.fetcher import allowed_roots
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.plan import Plan, Step, check
from mediamill.pipeline.ray_cluster.cluster import ray_cluster
from mediamill.pipeline.records import RowFailure, failure_columns, failures
from mediamill.pipeline.run import PrepareStage, Stages, run
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema, check_partition_by
from mediamill.schemas.result import Progress, Summary

_MANIFEST, _TO_ASK = "_manifest", "_videos"
_PLAIN_NOTES = "_merged"  # in a folder of videos without summaries
_SPLIT_ROWS = 1024  # of one file of the split, at most
_HEADS_AT_ONCE, _SCENES_AT_ONCE = 64, 8  # rows of the split that four callers bring together


class SplitStage:
    """What an actor of the CPU pool runs in a split."""

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

        rules = SplitRules.of(job, base)
        self._split = Split(schema, rules, Fetch(schema, rules.fetch), count)

    def __call__(self, table: pa.Table) -> pa.Table:
        return self._split(table)


class PassStage:
    """What an actor of the other pool runs in a split: nothing is left to do."""

    def __init__(self, count: Callable[[int], None], **_: Any) -> None:
        self._count = count

    def __call__(self, table: pa.Table) -> pa.Table:
        self._count(table.num_rows)
        return table


class WindowStage(PrepareStage):
    """What an actor of the CPU pool runs for windows: what cannot be split is not fetched again."""

    def __call__(self, table: pa.Table) -> pa.Table:
        return super().__call__(with_failures(table))


def with_failures(table: pa.Table) -> pa.Table:
    """The table, with rows as error rows whose manifest says what is wrong with them."""
    codes, messages = table[SPLIT_CODE].to_pylist(), table[SPLIT_MESSAGE].to_pylist()
    found = failures(table)
    for place, (code, message) in enumerate(zip(codes, messages, strict=True)):
        if found[place] is None and code is not None:
            found[place] = RowFailure(code, message)
    for name, values in failure_columns(found).items():
        number = table.schema.get_field_index(name)
        table = table.set_column(number, table.schema.field(name), pa.array(values, pa.string()))
    return table


SPLIT_STAGES = Stages(prepare=SplitStage, generate=PassStage)
WINDOW_STAGES = Stages(prepare=WindowStage)


@dataclass(frozen=True)
class Annotation:
    """A job annotate that can begin. split: of its first step."""

    job: JobConfig
    output: Place
    split: Plan

    @property
    def manifest(self) -> ManifestSchema:
        """Of the videos."""
        return self.split.manifest.schema


@dataclass(frozen=True)
class Annotated:
    """What a finished job did. merged: new rows of videos. summaries: of the last step, if any."""

    split: Summary
    windows: Summary
    merged: int = 0
    summaries: Summary | None = None


def check_annotation(job: JobConfig) -> Annotation:
    """Raises JobError: what is wrong, what was found, what was expected."""
    output = storage.resolve(job.output)
    _check_output(job, output)
    with _named(output):
        plan = check(_split_job(job), _split_step(job))
        rules = WindowRules.of(job)
        given = not rules.needs_media
        check_columns(plan.manifest.schema, given, plan.manifest.url)
        check_partition_by(plan.manifest.schema, job.partition_by, storage.redact(job.manifest))
        if visible_files(output / _MANIFEST):  # before new videos are split for nothing
            check(_windows_job(job), _windows_step())
    return Annotation(job, output, plan)


def annotate(
    annotation: Annotation,
    on_phase: Callable[[str], None] = lambda name: None,
    on_progress: Callable[[Progress], None] | None = None,
    address: str | None = None,
    stop: Stop | None = None,
    stages: Stages = WINDOW_STAGES,
) -> Annotated:
    """Makes what the output does not have yet, and says what that was.

    on_phase: told the name of each step when it begins. stages: of the windows. The others, and
    what is raised, as of mediamill.pipeline.run.
    """
    job, output, manifest = annotation.job, annotation.output, annotation.manifest
    stop = stop or Stop()
    with _named(output), ExitStack() as stack:
        stack.enter_context(spool.hold_shared_folder())
        on_phase("split")
        if annotation.split.rows_left:  # then all steps have work: they share what is started now
            stack.enter_context(ray_cluster(address))
        split = run(_split_job(job), annotation.split, on_progress, address, SPLIT_STAGES, stop)
        make_windows(output / SPLIT_FOLDER, output / _MANIFEST, manifest)
        on_phase("windows")
        mine = _windows_job(job)
        plan = check(mine, _windows_step())
        windows = run(mine, plan, on_progress, address, stages, stop)
        if not job.annotate.videos:
            return Annotated(split, windows)
        on_phase("videos")
        folders = output / SPLIT_FOLDER, output / WINDOWS_FOLDER
        if job.annotate.summary_prompt is None:
            merged = merge(*folders, output / VIDEOS_FOLDER, plain_videos(manifest, plan.task))
            return Annotated(split, windows, merged)
        rules = videos_to_ask(manifest, plan.task, _summary_rules(job, plan))
        merged = merge(*folders, output / _TO_ASK, rules)
        on_phase("summaries")
        mine = _summary_job(job)
        plan = check(mine, _summary_step(job))
        summaries = run(mine, plan, on_progress, address, stages, stop)
        return Annotated(split, windows, merged, summaries)


def _split_job(job: JobConfig) -> JobConfig:
    """Needs no engine, whatever the job says of those."""
    rows = _SCENES_AT_ONCE if job.annotate.windows == "scenes" else _HEADS_AT_ONCE
    labels = job.resources.labels
    resources = job.resources.model_copy(
        update={
            "device": "cpu",
            "replicas": 1,
            "batch_rows": rows,
            "labels": labels.model_copy(update={"generate": labels.prepare}),
        }
    )
    return job.model_copy(
        update={
            "output": f"{job.output.rstrip('/')}/{SPLIT_FOLDER}",
            "partition_by": (),
            "rows_per_file": _SPLIT_ROWS,
            "resources": resources,
            "dedupe": False,
        }
    )


def _split_step(job: JobConfig) -> Step:
    said = job.annotate
    keys = {
        "fixed": ("window_s", "overlap_s", "min_s"),
        "scenes": ("scene_threshold", "min_s", "max_scene_s"),
        "given": (),
    }[said.windows]
    parts = {f"annotate.{key}": getattr(said, key) for key in ("windows", *keys, "max_windows")}
    return Step(lambda manifest, _: split_schema(manifest), lambda _: parts)


def _windows_job(job: JobConfig) -> JobConfig:
    output = job.output.rstrip("/")
    # What rows may read follows from the user's manifest, not from the one that is made here.
    roots = allowed_roots(job, str(Path.cwd()))
    return job.model_copy(
        update={
            "manifest": f"{output}/{_MANIFEST}",
            "output": f"{output}/{WINDOWS_FOLDER}",
            "fetch": job.fetch.model_copy(update={"roots": roots}),
        }
    )


def _windows_step() -> Step:
    return Step(lambda _, schema: without_hidden(schema))


def _summary_job(job: JobConfig) -> JobConfig:
    output = job.output.rstrip("/")
    return job.model_copy(
        update={
            "manifest": f"{output}/{_TO_ASK}",
            "output": f"{output}/{VIDEOS_FOLDER}",
            "partition_by": (),
            # The canary is asked what it is asked among the windows.
            "canary": job.canary.model_copy(update={"prompt": job.canary.prompt or job.prompt}),
            "prompt": None,
            "prompts": None,
            "json_schema": None,
            "dedupe": False,
        }
    )


def _summary_step(job: JobConfig) -> Step:
    asked = {"annotate.summary_prompt": job.annotate.summary_prompt}
    return Step(lambda _, schema: without_hidden(schema), lambda parts: {**parts, **asked})


def _summary_rules(job: JobConfig, plan: Plan) -> SummaryRules:
    from mediamill.model.text.tokenizer import Tokenizer

    folder = local_folder(plan.model.url, plan.checkpoint, job.resources.cache, weights=False)
    tokenizer = Tokenizer.load(folder)
    config = parse_config((folder / "config.json").read_bytes(), str(folder))

    def tokens(text: str) -> int:
        return len(tokenizer.encode_plain(text))

    room = prompt_room(config.text.context_length, job.generation.max_new_tokens)
    room -= tokens(job.system or "")
    return SummaryRules(job.annotate.summary_prompt or "", room, tokens)


def _check_output(job: JobConfig, output: Place) -> None:
    """Whether the folder is an annotation's, or nobody's yet."""
    shown = storage.redact(output.url)
    try:
        names: Sequence[str] = []
        if output.fs.isdir(output.path):
            listed = output.fs.ls(output.path, False)
            names = [str(one).rstrip("/").rpartition("/")[2] for one in listed]
        foreign = [name for name in names if name and name[0] not in "._"]
        foreign = sorted({*foreign} - {WINDOWS_FOLDER, VIDEOS_FOLDER})
        if foreign or ledger.HIDDEN in names:
            what = foreign[0] if foreign else "the result of a job of another kind"
            raise JobError(
                f"{shown}: the output holds '{what}', expected an empty folder, nothing yet, or "
                "what a job annotate has written there"
            )
        plain = storage.exists(output / VIDEOS_FOLDER / _PLAIN_NOTES)
    except OSError as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{shown}: the output cannot be read: {reason}") from error
    if job.annotate.videos and _TO_ASK in names and job.annotate.summary_prompt is None:
        raise JobError(
            f"{shown}: the output's videos were made with annotate.summary_prompt, and the job has "
            "none: write to a new output folder, or undo the change"
        )
    if plain and job.annotate.summary_prompt is not None:
        raise JobError(
            f"{shown}: the output's videos were made without annotate.summary_prompt, and the job "
            "has one: write to a new output folder, or undo the change"
        )


@contextmanager
def _named(output: Place) -> Iterator[None]:
    """Has sentences name the folder that the user has named, and not one in it."""
    try:
        yield
    except JobError as error:
        shown, text = storage.redact(output.url), str(error)
        for name in STEPS:
            text = text.replace(f"{shown}/{name}: the output was", f"{shown}: the output was")
            text = text.replace(f"such as {shown}/{name}-", f"such as {shown}-")
        raise JobError(text) from error
