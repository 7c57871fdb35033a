"""The prepare stage: turns media and prompts into patches, token ids and receipts, or row errors.

A row's columns become a DecodeRequest, and the reply becomes the columns of `prepared_schema`. The
workers of the decoder pool run model/processor.py.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.model.media.receipt import Receipt
from mediamill.pipeline.decoding.arrow_column import binary_column
from mediamill.pipeline.decoding.decoder_pool import (
    DecodeReply,
    DecodeRequest,
    DecoderPool,
    MediumRequest,
)
from mediamill.pipeline.fetching.media_uris import shortened
from mediamill.pipeline.fetching.short_uris import short_uris
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.ladder.attempts import Attempts, with_attempts
from mediamill.pipeline.ladder.steps import shrink, shrinking_helps, smaller_attempt
from mediamill.pipeline.records import (
    MEDIA_BYTES,
    MEDIA_PATHS,
    RowFailure,
    failure_columns,
    failures,
    media_uris,
    prepared_schema,
    replace_columns,
)
from mediamill.pipeline.row_values import read_columns, row_values
from mediamill.pipeline.tasks.chats import check_media
from mediamill.pipeline.tasks.checksum import checksums
from mediamill.pipeline.tasks.tasks import task_kind
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import Task

_KINDS = ("image", "video")


@dataclass(frozen=True)
class _Row:
    """One row before its media are decoded.

    request: None if the row has a `failure`.
    prompt_failure: of its prompt alone; its media are decoded for their receipts.
    """

    uris: Sequence[str | None] = ()
    request: DecodeRequest | None = None
    failure: RowFailure | None = None
    prompt_failure: RowFailure | None = None


class Prepare:
    """The stage. Rows that cannot be prepared become error rows, with the receipts they have."""

    def __init__(
        self,
        manifest: ManifestSchema,
        job: JobConfig,
        task: Task,
        checkpoint: Path,
        count: Callable[[int], None],
        base: str | None = None,
        decoded_s: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """checkpoint: its folder. count: called with the number of rows of each table.

        base: the folder in which the job was started; None for the current one.
        decoded_s: called with the seconds that each table waited for its decode workers.

        Raises ModelError for a checkpoint that cannot be used.
        """
        self._manifest, self._job, self._task = manifest, job, task
        self._kind, self._count = task_kind(task), count
        self._base = str(Path.cwd()) if base is None else base
        arguments = {
            "checkpoint": str(checkpoint),
            "image_min_pixels": job.image.min_pixels,
            "image_max_pixels": job.image.max_pixels,
            "video": job.video.model_dump(exclude={"mrope"}),
        }
        self._decoder = DecoderPool(arguments, job.limits)
        self._decoded_s = decoded_s

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `fetched_schema` -> one of `prepared_schema`.

        Raises RuntimeError when no decode worker can be started.
        """
        try:
            attempts = table[c.ATTEMPT_HISTORY].to_pylist()
            rows = self._rows(table, attempts)
            decoded = self._decode(rows)
            self._decode_smaller(rows, decoded, attempts)
            replies = [_with_failure(reply, row) for reply, row in zip(decoded, rows, strict=True)]
        finally:
            for paths in table[MEDIA_PATHS].to_pylist():
                Spool.release(paths or ())
        self._count(len(replies))
        table = with_attempts(table, attempts)
        columns = _columns(replies, [row.uris for row in rows], len(self._task.questions))
        columns |= failure_columns([reply.failure for reply in replies])
        columns[c.TENSOR_CHECKSUM] = checksums(table, columns)
        columns[c.PATCHES] = binary_column(columns[c.PATCHES], self._decoder.buffers)
        columns |= short_uris(table, self._manifest)
        return replace_columns(table, columns, prepared_schema(self._manifest))

    def close(self) -> None:
        """Ends the decode workers; they also end when nothing refers to the stage any more."""
        self._decoder.close()

    def _decode(self, rows: Sequence[_Row]) -> list[DecodeReply | None]:
        """Returns the reply of each row, None for one without a request.

        Equal requests are decoded once if the task removes duplicates.
        """
        requests: dict[object, DecodeRequest] = {}
        keys: list[object] = []
        for number, row in enumerate(rows):
            key: object = number
            if row.request is not None:
                key = row.request.content_hash() if self._task.dedupe else number
                requests.setdefault(key, row.request)
            keys.append(key)
        started = time.monotonic()
        replies = dict(zip(requests, self._decoder.prepare(requests.values()), strict=True))
        self._decoded_s(time.monotonic() - started)
        return [replies.get(key) for key in keys]

    def _decode_smaller(
        self, rows: list[_Row], replies: list[DecodeReply | None], attempts: list[Attempts | None]
    ) -> None:
        """Decodes rows again, with smaller media, that are too large, as often as the job says.

        Replaces their replies, and adds to their attempts.
        """
        while True:
            requests: dict[int, DecodeRequest] = {}
            for number, (row, reply) in enumerate(zip(rows, replies, strict=True)):
                failure = None if reply is None or row.request is None else reply.failure
                if failure is None or row.request is None or not row.request.media:
                    continue
                is_left = shrink(attempts[number]) < 2**self._job.retries.smaller
                if is_left and shrinking_helps(failure.code, failure.message):
                    values = attempts[number], failure.code, failure.message
                    attempts[number] = smaller_attempt(*values)
                    requests[number] = replace(row.request, shrink=shrink(attempts[number]))
            if not requests:
                return
            again = [_Row(rows[number].uris, request) for number, request in requests.items()]
            for number, row, reply in zip(requests, again, self._decode(again), strict=True):
                rows[number] = replace(rows[number], request=row.request)
                replies[number] = reply

    def _rows(self, table: pa.Table, attempts: Sequence[Attempts | None]) -> list[_Row]:
        data, paths = table[MEDIA_BYTES], table[MEDIA_PATHS]
        uris, row_failures = media_uris(table, self._manifest), failures(table)
        return [
            self._row(
                *(table, number, uris[number], _contents(data[number], paths[number])),
                shrink(attempts[number]),
            )
            if failure is None
            else _Row(failure=failure)
            for number, failure in enumerate(row_failures)
        ]

    def _row(
        self,
        table: pa.Table,
        number: int,
        uris: Sequence[str | None],
        contents: Sequence[memoryview | Path],
        divisor: int,
    ) -> _Row:
        try:
            values = row_values(table, number, read_columns(self._manifest))
            media = self._media(values, contents)
        except RowError as error:
            return _Row(failure=RowFailure.of(error))
        try:
            values |= row_values(table, number, self._task.input_columns)
            chats = self._kind.chats(values, self._job.prompt, self._job.system)
            if media or self._job.job != "embed":  # of a text without media there is a vector
                chats = check_media(values, chats, uris, self._base)
            request = DecodeRequest(media, chats, self._kind.texts(values), shrink=divisor)
        except RowError as error:
            return _Row(uris, DecodeRequest(media), prompt_failure=RowFailure.of(error))
        return _Row(uris, request)

    def _media(
        self, values: Mapping[str, Any], contents: Sequence[memoryview | Path]
    ) -> list[MediumRequest]:
        """The row's media, each with its kind and window."""
        if self._manifest.form == c.URI:
            return [MediumRequest(content) for content in contents]
        requests = []
        for content, medium in zip(contents, values[c.MEDIA] or [], strict=True):
            kind = medium[c.MEDIA_TYPE]
            if kind is not None and kind not in _KINDS:
                raise RowError(
                    ErrorCode.DECODE_UNSUPPORTED,
                    f"media: found the type '{kind}', expected image or video",
                )
            start_s, end_s = medium[c.MEDIA_START_S], medium[c.MEDIA_END_S]
            requests.append(MediumRequest(content, kind, start_s, end_s))
        return requests


def _contents(data: pa.ListScalar, paths: pa.ListScalar) -> list[memoryview | Path]:
    """The bytes or the path of each medium."""
    return [
        memoryview(content.as_buffer()) if path is None else Path(path)
        for content, path in zip(data, paths.as_py() or [None] * len(data), strict=True)
    ]


def _with_failure(reply: DecodeReply | None, row: _Row) -> DecodeReply:
    """Returns the reply with the row's failure, whatever its reason."""
    if reply is None:
        return DecodeReply(failure=row.failure)
    failure = reply.failure or row.prompt_failure
    if reply.receipts and not sum(receipt.visual_tokens for receipt in reply.receipts):
        failure = RowFailure(ErrorCode.MEDIA_EMPTY.value, "the row's media have no visual tokens")
    return replace(reply, failure=failure)


def _columns(
    replies: list[DecodeReply], uris: list[Sequence[str | None]], prompts: int
) -> dict[str, Any]:
    """The values of the columns that this stage adds, by name. prompts: the number per row."""

    def tensor(value: Callable[[DecodeReply], Any]) -> list[Any]:
        return [None if reply.failure else value(reply) for reply in replies]

    def first(value: Callable[[Receipt], Any]) -> list[Any]:
        return [value(reply.receipts[0]) if reply.receipts else None for reply in replies]

    receipts = [
        [_receipt(*pair) for pair in zip(reply.receipts, row_uris, strict=True)]
        if reply.receipts or not reply.failure
        else None
        for reply, row_uris in zip(replies, uris, strict=True)
    ]
    visual_tokens = [
        None if row is None else sum(receipt["visual_tokens"] for receipt in row)
        for row in receipts
    ]
    return {
        c.INPUT_IDS: tensor(lambda reply: reply.ids[:prompts]),
        c.CONTINUATIONS: tensor(lambda reply: reply.ids[prompts:]),
        c.PATCHES: tensor(lambda reply: reply.patches),
        c.GRID_THW: tensor(lambda reply: [n for visual in reply.visuals for n in visual.grid_thw]),
        c.MEDIA_KINDS: tensor(lambda reply: [visual.kind for visual in reply.visuals]),
        c.VISUAL_TOKENS: visual_tokens,
        c.SHA256: first(lambda receipt: receipt.sha256),
        c.HEIGHT: first(lambda receipt: receipt.height),
        c.WIDTH: first(lambda receipt: receipt.width),
        c.FRAME_TIMES_S: first(lambda receipt: receipt.frame_times_s),
        c.RECEIPT: receipts,
    }


def _receipt(receipt: Receipt, uri: str | None) -> dict[str, Any]:
    """A value of RECEIPT_STRUCT: Receipt's fields, with the type for the kind, and the URI."""
    values = {name: value for name, value in vars(receipt).items() if name != "kind"}
    return {**values, "type": receipt.kind, "uri": None if uri is None else shortened(uri)}
