"""Makes manifests: as a command, and for jobs whose MANIFEST is another source of media.

A job's own manifest lies in the folder `_manifest` of its output, and grows with the source.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mediamill.jobs.commands import parse_manifest
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig

if TYPE_CHECKING:
    from mediamill.pipeline.sources.build import BuildSummary, Progress
    from mediamill.pipeline.sources.detect import SourceRules
    from mediamill.pipeline.storage.storage import Place

# Not .parquet: readers that look for *.parquet everywhere below an output must not find these.
_JOB_SUFFIX = ".parq"
DEFAULT_PROMPT = "Describe this image."
_TERMINAL_S, _LOG_S = 0.5, 10.0  # between two lines of progress


def manifest_command(argv: Sequence[str]) -> int:
    """Runs `mediamill manifest`. Returns 0; raises JobError."""
    options = parse_manifest(argv)
    from mediamill.pipeline.sources.build import build_manifest
    from mediamill.pipeline.storage import storage

    output = storage.resolve(options.output)
    reporter = _Reporter()
    probe = None
    if options.probe:
        from mediamill.pipeline.sources.probe_media import MediaProber

        probe = MediaProber(str(storage.absolute(options.source))).probe
    summary = build_manifest(
        options.source, output, _rules(options), probe=probe, on_progress=reporter
    )
    reporter.end()
    _print_left_out(summary)
    if options.json:
        print(json.dumps(_summary_dict(summary, output.url), ensure_ascii=False))
    else:
        print(_summary_text(summary, options.output))
    return 0


def resolve_manifest(job: JobConfig, made: "Place | None" = None) -> JobConfig:
    """Returns the job with a Parquet manifest: its own, or one made of the source that it names.

    made: where it is made; None = in the output, where what a plan has listed is not listed again.
    Tells on stderr what the source has, and the default prompt if there is no other. Raises
    JobError.
    """
    from mediamill.pipeline.sources.changed_archives import check_archives
    from mediamill.pipeline.sources.detect import SourceRules, is_manifest
    from mediamill.pipeline.storage import storage

    if is_manifest(job.manifest):
        check_archives(job.manifest)
        return job
    from mediamill.pipeline.sources.build import build_manifest
    from mediamill.pipeline.sources.job_manifest import job_manifest

    source = storage.absolute(job.manifest)
    output = storage.resolve(job.output)
    if f"{source}/".startswith(f"{output.url}/"):
        raise JobError(
            f"output: found {storage.redact(output.url)}, which is or lies around the source "
            f"{storage.redact(source)}, expected a folder apart from it"
        )
    reporter = _Reporter()
    if made is None:
        from mediamill.jobs.planned_manifest import hand_over, planned_place

        made = job_manifest(job)
        hand_over(planned_place(job), made)
    summary = build_manifest(
        job.manifest, made, SourceRules(), suffix=_JOB_SUFFIX, on_progress=reporter
    )
    reporter.end()
    print(_summary_text(summary, storage.redact(made.url)), file=sys.stderr)
    _print_left_out(summary)
    changes: dict[str, Any] = {"manifest": made.url}
    if job.fetch.roots is None and storage.scheme(source) == "file":
        roots = (_folder(source), ".")
        changes["fetch"] = job.fetch.model_copy(update={"roots": roots})
    if _lacks_prompt(job, summary):
        prompt = _default_prompt(job.model)
        print(f'no prompt was given: each row is asked "{prompt}"', file=sys.stderr)
        changes["prompt"] = prompt
    return job.model_copy(update=changes)


def _folder(source: str) -> str:
    """The folder that a source's files may lie in: itself, or that of a file or of a glob."""
    from pathlib import Path

    path = Path(source)
    while not path.is_dir():
        path = path.parent
    return str(path)


def _lacks_prompt(job: JobConfig, summary: "BuildSummary") -> bool:
    own = {"prompt", "messages"} & set(summary.columns)
    wanted = job.job in ("caption", "annotate", "score")
    return wanted and job.prompt is None and not job.prompts and not own


def _default_prompt(model: str) -> str:
    from mediamill.model.tiny import CAPTION_PROMPT
    from mediamill.pipeline.checkpoint.checkpoint_hash import BUILT_IN

    return CAPTION_PROMPT if model == BUILT_IN else DEFAULT_PROMPT


def _rules(options: argparse.Namespace) -> "SourceRules":
    from mediamill.pipeline.sources.detect import SourceRules
    from mediamill.pipeline.sources.media_names import NameRules
    from mediamill.pipeline.sources.table_columns import ColumnRules
    from mediamill.pipeline.sources.tables import TableRules
    from mediamill.pipeline.storage import storage

    base = options.base and storage.absolute(options.base)
    columns = ColumnRules(options.uri_column, options.id_column)
    return SourceRules(
        options.kind,
        NameRules(options.glob, tuple(options.include), tuple(options.exclude)),
        TableRules(columns, options.encoding, base),
    )


def _summary_dict(summary: "BuildSummary", output: str) -> dict[str, object]:
    return {
        "kind": summary.kind,
        "manifest": output,
        "rows": summary.rows,
        "new": summary.new,
        "gone": summary.gone,
        "columns": list(summary.columns),
        "left_out": [
            {"reason": reason, "count": count, "example": example}
            for reason, count, example in summary.left_out.entries()
        ],
        "notes": list(summary.notes),
    }


def _summary_text(summary: "BuildSummary", output: str) -> str:
    return f"{output}: {summary.rows:,} rows, {summary.new:,} of them new ({summary.kind})"


def _print_left_out(summary: "BuildSummary") -> None:
    for note in summary.notes:
        print(f"note: {note}", file=sys.stderr)
    for line in summary.left_out.lines():
        print(line, file=sys.stderr)
    if summary.gone > 0:
        print(
            f"note: {summary.gone:,} rows of earlier runs are no longer in the source; they stay",
            file=sys.stderr,
        )


class _Reporter:
    """Prints progress on stderr: a line that changes on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._printed = time.monotonic()
        if self._terminal:
            print("\rreading the source\033[K", end="", file=sys.stderr, flush=True)

    def __call__(self, progress: "Progress") -> None:
        now = time.monotonic()
        if now - self._printed < (_TERMINAL_S if self._terminal else _LOG_S):
            return
        self._printed = now
        text = f"reading the source: {progress.rows:,} rows, {progress.new:,} of them new"
        if self._terminal:
            print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Removes the line."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
