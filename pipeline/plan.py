"""Checks a job before anything is started, and makes its Plan, without Ray and torch.

Reads the output's log; the footers, ids and partition values of those manifest files that the log
does not know; and the checkpoint's files as bytes.
"""

import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.model.errors import ModelError
from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig, parse_config
from mediamill.model.layers.shards import Shard
from mediamill.pipeline.checkpoint.checkpoint_hash import BUILT_IN, CheckpointHash, check_checkpoint
from mediamill.pipeline.checkpoint.loading_check import LoadingCheck, PromptTexts
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.fetching.check_job import check_fetching
from mediamill.pipeline.fingerprint import fingerprint, fingerprint_parts
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.state import KnownFile, LedgerState, Resharding
from mediamill.pipeline.manifest.check_values import check_values
from mediamill.pipeline.manifest.manifest import Manifest, open_manifest
from mediamill.pipeline.manifest.resharding import check_files
from mediamill.pipeline.manifest.unique_ids import NewIds
from mediamill.pipeline.output_header import check_bound, layout
from mediamill.pipeline.ray_cluster.ray_version import check_ray_version
from mediamill.pipeline.ray_cluster.trim_memory import trim_memory
from mediamill.pipeline.records import MEDIA_BYTES, MEDIA_PATHS
from mediamill.pipeline.replica.canary import check_canary
from mediamill.pipeline.retry.options import Retry
from mediamill.pipeline.sources.job_manifest import is_job_manifest
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.overlap import overlaps
from mediamill.pipeline.storage.storage import Place
from mediamill.pipeline.tasks.tasks import task_kind
from mediamill.schemas import columns as c
from mediamill.schemas.conditions import parse_condition
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.job_columns import check_partition_by
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.result import result_schema
from mediamill.schemas.task import Task, task_of

_ANSWERS = (c.TEXT, c.FINISH_REASON, c.MEAN_LOGPROB)  # columns that only some tasks make
_MIN_STEP_S = 1.0


@dataclass(frozen=True)
class StepOverrides:
    """What differs in the plan of a run that is one of several steps of a job.

    schema: returns the result's schema, given the manifest's and that of a job with one step.
    fingerprint_parts: returns the parts of the fingerprint, given those of a job with one step.
    """

    schema: Callable[[ManifestSchema, pa.Schema], pa.Schema]
    fingerprint_parts: Callable[[dict[str, Any]], dict[str, Any]] = dict


@dataclass(frozen=True)
class Plan:
    """A checked job that is ready to run.

    model: the checkpoint's folder. checkpoint: the hash of its content.
    bound: the fingerprint and layout that all runs on the output must have.
    files: of the manifest, as the ledger will store them.
    new_ids: ids of these files, to be saved before the ledger stores the files.
    resharding: what the ledger stores of rows that are in other files than before.
    state: of the output's ledger when the job was checked.
    step: None if the job has a single step.
    retry: None if the run does no rows again.
    notes: sentences for the user, about files that are left out and the like.
    """

    manifest: Manifest
    output: Place
    model: Place
    checkpoint: CheckpointHash
    fingerprint: str
    bound: Mapping[str, Any]
    task: Task
    schema: pa.Schema
    files: tuple[KnownFile, ...]
    new_ids: NewIds
    resharding: Resharding
    state: LedgerState
    step: StepOverrides | None = None
    retry: Retry | None = None
    notes: tuple[str, ...] = ()

    @property
    def rows_done(self) -> int:
        return self.state.counts.rows

    @property
    def is_recorded(self) -> bool:
        """Whether the ledger knows the manifest's files as they are now.

        Otherwise the next check reads ids again, and looks for moved rows again.
        """
        return not self.resharding.retired and set(self.files) <= set(self.state.files)

    @property
    def rows_left(self) -> int:
        return self.manifest.rows - self.rows_done


def check(
    job: JobConfig,
    step: StepOverrides | None = None,
    meanwhile: Callable[[], None] | None = None,
    will_run: bool = True,
    retry: Retry | None = None,
) -> Plan:
    """Returns the job's plan. Raises JobError with what was found and what was expected.

    meanwhile: called while another process loads the checkpoint, if one has to.
    will_run: False for a forecast: nothing is written to the output, not even to see whether that
        is possible, and nothing of the checkpoint is loaded.
    retry: which error rows of the output are done again, if any.
    """
    check_ray_version()
    _check_output_apart(job)  # first, since it would explain what the others find
    output = storage.resolve(job.output)
    state = LedgerState()

    def manifest_of_output() -> Manifest:
        state.become(_open_output(output))
        return open_manifest(job.manifest, state.files, state.header, job.media_column)

    manifest, model = _all_of(
        manifest_of_output,
        lambda: check_checkpoint(job.model),
        lambda: _check_sampling(job),
        lambda: check_fetching(job),
        lambda: _check_step_timeout(job),
    )
    config = _check_model(job, model)
    task = task_kind(task_of(job, config.text.hidden_size)).resolve(model)
    _check_columns(job, manifest, task)
    check_canary(job)
    content = CheckpointHash.of(model)
    parts = fingerprint_parts(job, content.whole) | task_kind(task).fingerprint()
    schema = result_schema(manifest.schema, task)
    if step is not None:
        parts = step.fingerprint_parts(parts)
        schema = step.schema(manifest.schema, schema)
    if state.header is not None and c.ATTEMPT_HISTORY not in state.header["layout"]["columns"]:
        schema = pa.schema([field for field in schema if field.name != c.ATTEMPT_HISTORY])
    if retry is not None and retry.where is not None:
        parse_condition(retry.where, schema)  # for its JobError
    digest = fingerprint(parts)
    bound = {"fingerprint": digest, "parts": parts, "layout": layout(job, schema)}
    bound |= manifest.header()
    if state.header is not None:
        check_bound(output, state.header, bound, retry)
    with ThreadPoolExecutor(1, "loading") as thread:  # mostly waits for another process
        loading = None
        # Else a run with this fingerprint has loaded it.
        is_new = not state.counts.rows or (retry is not None and retry.changed)
        if will_run and is_new:
            texts = _prompt_texts(job, manifest, task)
            loading_check = LoadingCheck(job, model, content.whole, texts)
            loading = thread.submit(loading_check.run)
            if meanwhile is not None and loading_check.needs_process:
                meanwhile()
        checked = check_files(manifest, state, output)
        notes = check_values(manifest, job.partition_by, begun=state.header is not None)
        if will_run:
            _check_writable(output)
        if loading is not None:
            loading.result()
    trim_memory()
    return Plan(
        manifest,
        output,
        model,
        content,
        digest,
        bound,
        task,
        schema,
        checked.files,
        checked.new_ids,
        checked.resharding,
        state,
        step,
        retry,
        (*manifest.notes, *notes, *checked.notes),
    )


def _all_of(
    manifest: Callable[[], Manifest], model: Callable[[], Place], *checks: Callable[[], None]
) -> tuple[Manifest, Place]:
    """Returns the manifest and the model. Raises one JobError with the mistakes of all checks."""
    mistakes: list[str] = []
    results: list[Any] = []
    for check_part in (*checks, manifest, model):
        try:
            results.append(check_part())
        except JobError as error:
            mistakes += error.sentences
    if mistakes:
        raise JobError(*mistakes)
    return results[-2], results[-1]


def _prompt_texts(job: JobConfig, manifest: Manifest, task: Task) -> PromptTexts:
    """Returns the texts that every row has in its chat."""
    own = {c.PROMPT, c.MESSAGES} & set(manifest.schema.optional)
    prompts = [question.prompt for question in task.questions] if task.is_named else [job.prompt]
    system = None if c.SYSTEM in manifest.schema.optional else job.system
    return PromptTexts([text for text in prompts if text is not None and not own], system)


def _check_sampling(job: JobConfig) -> None:
    for name in ("top_k", "top_p", "min_p") if job.generation.temperature == 0 else ():
        value = getattr(job.generation, name)
        if value is not None:
            raise JobError(
                f"generation.{name}: found {value} beside temperature 0, which takes the "
                "likeliest token whatever it says: expected null, or another temperature"
            )


def _check_model(job: JobConfig, model: Place) -> Qwen2VLConfig:
    where = storage.redact((model / "config.json").url)
    config = parse_config(storage.read(model / "config.json"), where)
    try:
        Shard(0, job.resources.tensor_parallel).check(config.text)
    except ModelError as error:
        raise JobError(f"resources.tensor_parallel: {error}") from error
    return config


def _check_step_timeout(job: JobConfig) -> None:
    if job.limits.step_timeout_s < _MIN_STEP_S:
        raise JobError(
            f"limits.step_timeout_s: found {job.limits.step_timeout_s:g}, expected at least "
            f"{_MIN_STEP_S:g}: a sound engine would count as broken"
        )


def _check_columns(job: JobConfig, manifest: Manifest, task: Task) -> None:
    where = storage.redact(manifest.url)
    check_partition_by(manifest.schema, job.partition_by, where)
    for name in job.partition_by:
        if name[0] in "_.":
            raise JobError(
                f"partition_by: found column '{name}', expected a name that does not begin with "
                f"'{name[0]}': readers of datasets skip such folders"
            )
    for name in {MEDIA_BYTES, MEDIA_PATHS} & {field.name for field in manifest.schema.user}:
        raise JobError(
            f"{where}: column '{name}' is also a column that the job uses between its stages: "
            f"rename it in the manifest, for example to 'source_{name}'"
        )
    taken = [name for name in result_schema(manifest.schema).names if name not in _ANSWERS]
    task.check_columns([*taken, *c.IN_FLIGHT_COLUMNS, MEDIA_BYTES, MEDIA_PATHS], where)
    task_kind(task).check_manifest(job, manifest.schema, where)


def _check_output_apart(job: JobConfig) -> None:
    sources = {"manifest": job.manifest} | ({} if job.model == BUILT_IN else {"model": job.model})
    for key, source in sources.items():
        made = is_job_manifest(source, job.output)  # which is hidden there
        if not made and overlaps(job.output, source):
            raise JobError(
                f"output: found {storage.redact(storage.absolute(job.output))}, which is or lies "
                f"in or around the {key} {storage.redact(storage.absolute(source))}, expected a "
                "folder apart from it"
            )


def _open_output(output: Place) -> LedgerState:
    shown = storage.redact(output.url)
    try:
        if output.fs.isfile(output.path):
            raise JobError(f"{shown}: the output is a file, expected a folder or nothing yet")
        state = ledger.load(output)
        if state.header is None and output.fs.isdir(output.path):
            paths = output.fs.ls(output.path, False)
            names = [path.rstrip("/").rpartition("/")[2] for path in paths]
            foreign = sorted(name for name in names if name and name[0] not in "._")
            if foreign:
                raise JobError(
                    f"{shown}: the output holds '{foreign[0]}', which Mediamill did not write, "
                    "expected an empty folder or nothing yet"
                )
    except OSError as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{shown}: the output cannot be read: {reason}") from error
    return state


def _check_writable(output: Place) -> None:
    probe = output / ledger.HIDDEN / f".probe-{uuid.uuid4().hex}"
    folders = [Path(output.path), Path(output.path) / ledger.HIDDEN] if output.is_local else []
    made = [folder for folder in folders if not folder.exists()]
    try:
        storage.put(probe, b"")
        storage.remove(probe)
        for folder in reversed(made):  # a job that is refused leaves nothing behind
            folder.rmdir()
    except RunError:  # the disk is full: the job itself is not wrong
        raise
    except Exception as error:  # each storage raises errors of its own
        reason = storage.redact_text(str(error))
        raise JobError(
            f"{storage.redact(output.url)}: the output cannot be written: {reason}"
        ) from error
