"""Defines the schema of the result, and the summary of a job.

A result row has the manifest's columns, then the answer, then the receipt, then the model and run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from mediamill.schemas import columns as c
from mediamill.schemas.errors import FAILS_AGAIN
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import CAPTION, Task

# What the model saw of one medium: enough to decode, sample and resize the same bytes again. The
# fields are those of `Receipt` in model/media/receipt.py, whose kind is the type, and the URI.
RECEIPT_STRUCT = pa.struct(
    [
        pa.field("type", pa.string()),  # image | video, detected from the bytes
        pa.field("uri", pa.string()),
        pa.field("sha256", pa.string()),  # of the bytes as fetched, 64 hex digits
        pa.field("source_height", pa.int32()),  # pixels as decoded (upright), before the resize
        pa.field("source_width", pa.int32()),
        pa.field("height", pa.int32()),  # pixels of the model's input
        pa.field("width", pa.int32()),
        pa.field("frame_indices", pa.list_(pa.int64())),  # of the decoded frames; [] for a picture
        pa.field("frame_times_s", pa.list_(pa.float64())),  # seconds from the start; same length
        pa.field("visual_tokens", pa.int32()),
        pa.field("notes", pa.list_(pa.string())),  # what was clamped, and why
        pa.field("bound_by", pa.list_(pa.string())),  # the names of the limits that took effect
        pa.field("seen_sha256", pa.string()),  # of a video's frames, resized
    ]
)

# One attempt to answer a row. Rows that were tried more than once list them, oldest first.
ATTEMPT_FIELDS: tuple[pa.Field, ...] = (
    pa.field("attempt", pa.int32()),  # counts from 1
    pa.field("run_id", pa.string()),
    pa.field("error_code", pa.string()),  # null if it succeeded
    pa.field("error_message", pa.string()),
    pa.field("changed", pa.string()),  # job keys with other values than the output's
)

# Every field is nullable: an error row has null for everything that is unknown.
ANSWER_FIELDS: tuple[pa.Field, ...] = (
    pa.field(c.TEXT, pa.string()),  # null in an error row
    pa.field(c.STATUS, pa.string()),  # ok | error
    pa.field(c.ERROR_CODE, pa.string()),  # one of ErrorCode; null in an ok row
    pa.field(c.ERROR_MESSAGE, pa.string()),
    pa.field(c.ATTEMPT, pa.int32()),  # 1 for the first try
    pa.field(c.FINISH_REASON, pa.string()),  # stop | length | error
    pa.field(c.PROMPT_TOKENS, pa.int32()),  # visual tokens included
    pa.field(c.VISUAL_TOKENS, pa.int32()),  # of all media of the row
    pa.field(c.OUTPUT_TOKENS, pa.int32()),  # the end token included
    pa.field(c.MEAN_LOGPROB, pa.float64()),  # natural log, mean over the output tokens
    # Of the first medium, since most rows have one; `receipt` has all of them.
    pa.field(c.SHA256, pa.string()),
    pa.field(c.HEIGHT, pa.int32()),
    pa.field(c.WIDTH, pa.int32()),
    pa.field(c.FRAME_TIMES_S, pa.list_(pa.float64())),  # empty for a picture
    pa.field(c.RECEIPT, pa.list_(RECEIPT_STRUCT)),  # one element a medium, in the row's order
    pa.field(c.MODEL, pa.string()),
    pa.field(c.FINGERPRINT, pa.string()),
    pa.field(c.RUN_ID, pa.string()),
    # Outputs that were begun before this column existed lack it.
    pa.field(c.ATTEMPT_HISTORY, pa.list_(pa.struct(ATTEMPT_FIELDS))),
)

_TEXT_COLUMNS = {c.TEXT, c.FINISH_REASON, c.MEAN_LOGPROB}


def result_schema(manifest: ManifestSchema, task: Task = CAPTION) -> pa.Schema:
    """Returns the exact schema of the result, with the partition columns (on disk in the path).

    Order: id, user columns, the manifest's own columns that are present (uri or media, prompt,
    system, messages), the task's further columns, ANSWER_FIELDS that apply to the task, and the
    columns of copies.
    """
    by_name = {column.name: column for column in manifest.fields}
    own = [
        column for name, column in by_name.items() if name in c.MANIFEST_COLUMNS and name != c.ID
    ]
    common = {column.name for column in ANSWER_FIELDS}
    further = [column for column in task.answer_fields if column.name not in common]
    omitted = _TEXT_COLUMNS - {column.name for column in task.answer_fields}
    answer = [column for column in ANSWER_FIELDS if column.name not in omitted]
    copies = copy_fields(manifest) if task.dedupe else ()
    return pa.schema([by_name[c.ID], *manifest.user, *own, *further, *answer, *copies])


def copy_fields(manifest: ManifestSchema) -> tuple[pa.Field, ...]:
    """Returns the columns of jobs that answer copies once."""
    return (
        # Hex digits; rows with the same hash are copies. Null when media could not be read.
        pa.field(c.CONTENT_HASH, pa.string()),
        pa.field(c.DUPLICATE_OF, manifest.id_type),  # the id of the row whose answer this is
    )


@dataclass(frozen=True)
class Summary:
    """The totals of a finished job.

    rows, ok, errors (by code): of the whole output, earlier runs included.
    new_errors: error rows that this run made, by code.
    skipped: rows that were finished in earlier runs.
    prompt_tokens, visual_tokens, output_tokens, seconds: of this run.
    engines_replaced: copies of the model that broke in this run and were reloaded.
    binds: the bottleneck, prepare or generate; None if it was neither.
    findings: answers of the whole output that may be wrong, by kind; see docs/quality.md.
    engine_rows_s: rows a second of all engines while they worked; None if there are none.
    advice: a sentence that names the key to change; None if no key would help.
    later: rows that --limit or --sample left for a later run.
    """

    rows: int
    ok: int
    errors: Mapping[str, int]
    skipped: int
    prompt_tokens: int
    visual_tokens: int
    output_tokens: int
    seconds: float
    output: str
    run_id: str
    fingerprint: str
    engines_replaced: int = 0
    binds: str | None = None
    new_errors: Mapping[str, int] = field(default_factory=dict)
    findings: Mapping[str, int] = field(default_factory=dict)
    engine_rows_s: float | None = None
    advice: str | None = None
    later: int = 0

    @property
    def error_rows(self) -> int:
        return sum(self.errors.values())

    @property
    def new_error_rows(self) -> int:
        return sum(self.new_errors.values())

    @property
    def exit_code(self) -> int:
        """3 when this run made error rows, 0 when it made none."""
        return 3 if self.new_error_rows else 0


def summary_dict(summary: Summary) -> dict[str, object]:
    """Returns the summary as one JSON object; `errors` is an object from code to count."""
    totals = {
        "error_rows": summary.error_rows,
        "new_error_rows": summary.new_error_rows,
        "exit_code": summary.exit_code,
    }
    return {"event": "summary", **asdict(summary), **totals}


def summary_text(summary: Summary, advises: bool = True) -> str:
    """Returns the summary as lines for a person; errors are one line with counts by code.

    advises: whether to say how the errors can be redone.
    """
    lines = [f"{summary.rows} rows: {summary.ok} ok, {_error_rows(summary)}"]
    if summary.skipped:
        lines[0] += f" ({summary.skipped} rows are from earlier runs)"
    if summary.error_rows:
        lines.append(f"errors: {error_counts(summary.errors)}")
    if summary.findings:
        lines.append(f"answers to look at: {error_counts(summary.findings)}")
    answered = summary.rows - summary.skipped
    rate = f", {answered / summary.seconds:.1f} rows/s" if answered and summary.seconds > 0 else ""
    lines.append(
        f"this run: {summary.prompt_tokens} prompt tokens ({summary.visual_tokens} visual), "
        f"{summary.output_tokens} output tokens in {summary.seconds:.1f} s{rate}"
    )
    if summary.engines_replaced:
        lines.append(f"engines that broke and were replaced: {summary.engines_replaced}")
    if summary.binds:
        ceiling = summary.engine_rows_s
        busy = f"; engines at work reach {ceiling:.1f} rows/s" if ceiling else ""
        lines.append(f"bottleneck: {summary.binds}{busy}")
    if summary.advice:
        lines.append(f"advice: {summary.advice}")
    if summary.later:
        lines.append(
            f"left for later: {summary.later} rows; the same command without --limit and --sample "
            "does them"
        )
    lines.append(f"output: {summary.output}")
    lines.append(f"run: {summary.run_id} (fingerprint {summary.fingerprint})")
    advice = retry_advice(summary.errors, summary.output)
    if advises and advice is not None:
        lines.append(advice)
    return "\n".join(lines)


def retry_advice(errors: Mapping[str, int], output: str) -> str | None:
    """Returns how the errors can be redone, None without errors."""
    if errors.keys() - FAILS_AGAIN:
        return f"to redo the errors: mediamill retry {output}"
    if not errors:
        return None
    return (
        "these errors come again unless files or keys change; then: "
        f"mediamill retry {output} [key=value ...]"
    )


def _error_rows(summary: Summary) -> str:
    """Returns "0 errors", "2 errors" (all of this run), "33 errors, 2 of them new"."""
    text = f"{summary.error_rows} error{'' if summary.error_rows == 1 else 's'}"
    if summary.error_rows == summary.new_error_rows:
        return text
    return f"{text}, {summary.new_error_rows or 'none'} of them new"


def error_counts(errors: Mapping[str, int]) -> str:
    """Returns codes and counts as text, most frequent first: "fetch_failed 3, poison 1"."""
    by_count = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{code} {count}" for code, count in by_count)
