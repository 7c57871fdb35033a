"""Turns media bytes and prompts into patches, token ids and receipts, or into row errors.

All that a checkpoint asks of its inputs is model/processor.py's, and runs in the processes of
decoder.py; here a row's columns become a question to them, and the answer its columns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.model.media.limits import MediaLimits
from mediamill.pipeline.decoding.arrow_column import binary_column
from mediamill.pipeline.decoding.decoder_pool import (
    DecodeReply,
    DecodeRequest,
    DecoderPool,
    DecodeRules,
    MediumRequest,
    Receipt,
)
from mediamill.pipeline.decoding.media_limits import media_limits
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.records import (
    MEDIA_BYTES,
    MEDIA_PATHS,
    RowFailure,
    failure_columns,
    failures,
    prepared_schema,
    replace_columns,
)
from mediamill.pipeline.tasks.checksum import checksums
from mediamill.pipeline.tasks.tasks import task_kind
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import CAPTION, Task

__all__ = ["MediaLimits", "Prepare", "PrepareRules"]

_KINDS = ("image", "video")


@dataclass(frozen=True)
class PrepareRules:
    """What the job says about inputs; see its keys of the same names.

    video: arguments of `VideoRules`, which is not imported here, since torch would be.
    """

    prompt: str | None
    system: str | None
    image_min_pixels: int | None
    image_max_pixels: int | None
    video: Mapping[str, Any] = field(default_factory=dict)
    limits: MediaLimits = field(default_factory=MediaLimits)
    decoding: DecodeRules = field(default_factory=DecodeRules)
    task: Task = CAPTION

    @classmethod
    def of(cls, job: JobConfig, task: Task = CAPTION) -> "PrepareRules":
        """What `job` says of inputs."""
        return cls(
            prompt=job.prompt,
            system=job.system,
            image_min_pixels=job.image.min_pixels,
            image_max_pixels=job.image.max_pixels,
            video=job.video.model_dump(exclude={"mrope"}),
            limits=media_limits(job.limits),
            decoding=DecodeRules(job.limits.decode_timeout_s, job.limits.decode_bytes),
            task=task,
        )


@dataclass(frozen=True)
class _Row:
    """One row before its media are looked at.

    failure: what is wrong with it already; then there is no question. chat_failure: what is wrong
    with its prompt alone; its media are looked at all the same, for their receipts.
    """

    uris: Sequence[str] = ()
    question: DecodeRequest | None = None
    failure: RowFailure | None = None
    chat_failure: RowFailure | None = None


class Prepare:
    """The stage. Rows that cannot be prepared become error rows, with the receipts they have."""

    def __init__(
        self,
        manifest: ManifestSchema,
        rules: PrepareRules,
        checkpoint: Path,
        count: Callable[[int], None],
    ) -> None:
        """Raises ModelError for a checkpoint that cannot be used."""
        self._manifest = manifest
        self._rules = rules
        self._kind = task_kind(rules.task)
        self._count = count
        arguments = {
            "checkpoint": str(checkpoint),
            "image_min_pixels": rules.image_min_pixels,
            "image_max_pixels": rules.image_max_pixels,
            "video": dict(rules.video),
            "limits": asdict(rules.limits),
        }
        self._decoder = DecoderPool(arguments, rules.decoding)

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `fetched_schema` -> one of `prepared_schema`.

        Raises RuntimeError when no process can be had that decodes.
        """
        try:
            rows = self._rows(table)
            answers = self._answers([row.question for row in rows])
            found = [_answer(row, answer) for row, answer in zip(rows, answers, strict=True)]
        finally:
            for paths in table[MEDIA_PATHS].to_pylist():
                Spool.release(paths or ())
        self._count(len(found))
        prompts = len(self._rules.task.questions)
        columns = _columns(found, [row.uris for row in rows], prompts)
        columns |= failure_columns([answer.failure for answer in found])
        columns[c.TENSOR_CHECKSUM] = checksums(table, columns)
        patches, columns[c.PATCHES] = columns[c.PATCHES], [None] * len(found)
        schema = prepared_schema(self._manifest)
        table = replace_columns(table, columns, schema)
        place = schema.get_field_index(c.PATCHES)
        column = binary_column(patches, self._decoder.warm)
        return table.set_column(place, schema.field(c.PATCHES), column)

    def _answers(self, questions: Sequence[DecodeRequest | None]) -> list[DecodeReply | None]:
        """Of each question; of those that are alike, where copies matter, one alone is asked."""
        asked: dict[object, DecodeRequest] = {}
        keys: list[object] = []
        for number, question in enumerate(questions):
            copies = self._rules.task.dedupe and question is not None
            keys.append(question.content() if copies and question else number)
            if question is not None:
                asked.setdefault(keys[-1], question)
        found = dict(zip(asked, self._decoder.prepare(list(asked.values())), strict=True))
        return [found.get(key) for key in keys]

    def close(self) -> None:
        """Ends the processes that decode; else they end when nothing refers to this any more."""
        self._decoder.close()

    def _rows(self, table: pa.Table) -> list[_Row]:
        data, paths = table[MEDIA_BYTES], table[MEDIA_PATHS]
        plain = table.drop_columns([MEDIA_BYTES, MEDIA_PATHS]).to_pylist()
        rows = []
        for number, (row, failure) in enumerate(zip(plain, failures(table), strict=True)):
            if failure is None:
                rows.append(self._row(row, _contents(data[number], paths[number])))
            else:
                rows.append(_Row(failure=failure))
        return rows

    def _row(self, row: dict[str, Any], contents: Sequence[memoryview | Path]) -> _Row:
        try:
            media = self._media(row, contents)
        except RowError as error:
            return _Row(failure=RowFailure(error.code.value, str(error)))
        uris = _uris(row, self._manifest)
        try:
            chats = self._kind.chats(row, self._rules.prompt, self._rules.system)
            return _Row(uris, DecodeRequest(media, chats, self._kind.texts(row)))
        except RowError as error:
            failure = RowFailure(error.code.value, str(error))
            return _Row(uris, DecodeRequest(media), chat_failure=failure)

    def _media(
        self, row: dict[str, Any], contents: Sequence[memoryview | Path]
    ) -> list[MediumRequest]:
        """The row's media, with the kind and the window that it has for each."""
        if self._manifest.form == c.URI:
            return [MediumRequest(content) for content in contents]
        media = []
        for content, one in zip(contents, row[c.MEDIA] or [], strict=True):
            kind = one[c.MEDIA_TYPE]
            if kind is not None and kind not in _KINDS:
                raise RowError(
                    ErrorCode.DECODE_UNSUPPORTED,
                    f"media: found the type '{kind}', expected image or video",
                )
            media.append(MediumRequest(content, kind, one[c.MEDIA_START_S], one[c.MEDIA_END_S]))
        return media


def _contents(data: pa.ListScalar, paths: pa.ListScalar) -> list[memoryview | Path]:
    """Of each medium, the bytes or the path."""
    named = paths.as_py() or [None] * len(data)
    return [
        memoryview(one.as_buffer()) if path is None else Path(path)
        for one, path in zip(data, named, strict=True)
    ]


def _uris(row: dict[str, Any], manifest: ManifestSchema) -> list[str]:
    if manifest.form == c.URI:
        return [row[c.URI]]
    return [one[c.MEDIA_URI] for one in row[c.MEDIA] or []]


def _answer(row: _Row, answer: DecodeReply | None) -> DecodeReply:
    """What is known of a row, with all that is wrong with it."""
    if answer is None:
        return DecodeReply(failure=row.failure)
    failure = answer.failure or row.chat_failure
    if answer.receipts and not sum(receipt.visual_tokens for receipt in answer.receipts):
        text = "the row's media have no visual tokens"
        failure = RowFailure(ErrorCode.MEDIA_EMPTY.value, text)
    return replace(answer, failure=failure)


def _columns(rows: list[DecodeReply], uris: list[Sequence[str]], prompts: int) -> dict[str, Any]:
    def each(value: Callable[[DecodeReply], Any]) -> list[Any]:
        return [None if row.failure else value(row) for row in rows]

    def seen(value: Callable[[DecodeReply], Any]) -> list[Any]:
        return [value(row) if row.receipts or not row.failure else None for row in rows]

    def first(value: Callable[[Receipt], Any]) -> list[Any]:
        return [value(row.receipts[0]) if row.receipts else None for row in rows]

    receipts = [
        [_receipt(receipt, uri) for receipt, uri in zip(row.receipts, named, strict=True)]
        if row.receipts or not row.failure
        else None
        for row, named in zip(rows, uris, strict=True)
    ]
    return {
        c.INPUT_IDS: each(lambda row: row.ids[:prompts]),
        c.CONTINUATIONS: each(lambda row: row.ids[prompts:]),
        c.PATCHES: each(lambda row: row.patches),
        c.GRID_THW: each(lambda row: [n for visual in row.visuals for n in visual.grid_thw]),
        c.MEDIA_KINDS: each(lambda row: [visual.kind for visual in row.visuals]),
        c.VISUAL_TOKENS: seen(lambda row: sum(one.visual_tokens for one in row.receipts)),
        c.SHA256: first(lambda receipt: receipt.sha256),
        c.HEIGHT: first(lambda receipt: receipt.height),
        c.WIDTH: first(lambda receipt: receipt.width),
        c.FRAME_TIMES_S: first(lambda receipt: receipt.frame_times_s),
        c.RECEIPT: receipts,
    }


def _receipt(receipt: Receipt, uri: str) -> dict[str, Any]:
    found = receipt.model_dump()
    return {**found, "type": found.pop("kind"), "uri": uri}
