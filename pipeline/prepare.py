"""Turns media bytes and prompts into patches, token ids and receipts, or into row errors.

All that a checkpoint asks of its inputs is model/processor.py's; here a row's columns become its
arguments, and its results columns.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from model.errors import MediaError, PromptError
from model.inputs import VisualInput, VisualKind
from model.processor import MediaLimits, Processor, Receipt, VideoRules
from model.text.prompt import Message
from pipeline.records import (
    MEDIA_BYTES,
    RowFailure,
    failure_columns,
    failures,
    prepared_schema,
    replace_columns,
)
from schemas import columns as c
from schemas.errors import ErrorCode, RowError
from schemas.job import JobConfig
from schemas.manifest import ManifestSchema

_KINDS: Mapping[str, VisualKind] = {"image": "image", "video": "video"}


@dataclass(frozen=True)
class PrepareRules:
    """What the job says about inputs; see its keys of the same names."""

    prompt: str | None
    system: str | None
    image_min_pixels: int | None
    image_max_pixels: int | None
    video: VideoRules
    limits: MediaLimits

    @classmethod
    def of(cls, job: JobConfig) -> "PrepareRules":
        """What `job` says of inputs."""
        limits = MediaLimits(
            max_image_pixels=job.limits.max_image_pixels,
            max_video_pixels=job.limits.max_video_pixels,
            max_frames_decoded=job.limits.max_frames_decoded,
            max_duration_s=job.limits.max_duration_s,
        )
        return cls(
            prompt=job.prompt,
            system=job.system,
            image_min_pixels=job.image.min_pixels,
            image_max_pixels=job.image.max_pixels,
            video=VideoRules(**job.video.model_dump(exclude={"mrope"})),
            limits=limits,
        )


@dataclass(frozen=True)
class Prepared:
    """What is known of one row: receipts of its media, and the engine's input if all went well."""

    receipts: list[Receipt]
    uris: list[str]
    visuals: list[VisualInput]
    input_ids: list[int]
    failure: RowFailure | None = None


class Prepare:
    """The stage. Rows that cannot be prepared become error rows, with the receipts they have."""

    def __init__(
        self,
        manifest: ManifestSchema,
        rules: PrepareRules,
        checkpoint: Path,
        count: Callable[[int], None],
    ) -> None:
        torch.set_num_threads(1)  # there is a process for each core
        self._manifest = manifest
        self._rules = rules
        self._count = count
        self._processor = Processor.load(
            checkpoint,
            rules.image_min_pixels,
            rules.image_max_pixels,
            rules.video,
            rules.limits,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `fetched_schema` -> one of `prepared_schema`."""
        media = table[MEDIA_BYTES]
        plain = table.drop_columns([MEDIA_BYTES]).to_pylist()
        rows: list[Prepared] = []
        for number, (row, failure) in enumerate(zip(plain, failures(table), strict=True)):
            if failure is None:
                rows.append(self._prepare(row, [one.as_buffer() for one in media[number]]))
            else:
                rows.append(Prepared([], [], [], [], failure))
        self._count(len(rows))
        columns = {**_columns(rows), **failure_columns([row.failure for row in rows])}
        return replace_columns(table, columns, prepared_schema(self._manifest))

    def _prepare(self, row: dict[str, Any], media: list[pa.Buffer]) -> Prepared:
        uris = _uris(row, self._manifest)
        try:
            seen = [
                self._processor.prepare_media(data.to_pybytes(), *wanted)
                for data, wanted in zip(media, self._wanted(row), strict=True)
            ]
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises is this row's fault
            return Prepared([], [], [], [], _failure(error, ErrorCode.DECODE_CORRUPT))
        visuals = [visual for visual, _ in seen]
        receipts = [receipt for _, receipt in seen]
        try:
            if media and not sum(visual.tokens for visual in visuals):
                raise RowError(ErrorCode.MEDIA_EMPTY, "the row's media have no visual tokens")
            messages = self._messages(row, [visual.kind for visual in visuals])
            input_ids = self._processor.build_prompt(messages, visuals)
        except Exception as error:  # noqa: BLE001 - a chat template is a program of the user's
            return Prepared(receipts, uris, [], [], _failure(error, ErrorCode.PROMPT_INVALID))
        return Prepared(receipts, uris, visuals, input_ids)

    def _wanted(
        self, row: dict[str, Any]
    ) -> list[tuple[VisualKind | None, float | None, float | None]]:
        """Kind and window of each medium, as the row has them."""
        if self._manifest.form == c.URI:
            return [(None, None, None)]
        wanted: list[tuple[VisualKind | None, float | None, float | None]] = []
        for one in row[c.MEDIA] or []:
            kind = one[c.MEDIA_TYPE]
            if kind is not None and kind not in _KINDS:
                raise RowError(
                    ErrorCode.DECODE_UNSUPPORTED,
                    f"media: found the type '{kind}', expected image or video",
                )
            wanted.append((_KINDS.get(kind), one[c.MEDIA_START_S], one[c.MEDIA_END_S]))
        return wanted

    def _messages(self, row: dict[str, Any], kinds: list[VisualKind]) -> list[Message]:
        """The row's own chat, else its prompt, else the job's."""
        if row.get(c.MESSAGES) is not None:
            return _chat(row[c.MESSAGES])
        prompt = row.get(c.PROMPT)
        prompt = self._rules.prompt if prompt is None else prompt
        if prompt is None:
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                "found no prompt in the row and none in the job, expected one",
            )
        system = row.get(c.SYSTEM)
        system = self._rules.system if system is None else system
        return self._processor.user_message(prompt, kinds, system)


def _chat(text: str) -> list[Message]:
    try:
        chat = json.loads(text)
    except ValueError as error:
        message = f"messages: found no JSON ({error}), expected a list of messages"
        raise RowError(ErrorCode.PROMPT_INVALID, message) from error
    if not isinstance(chat, list):
        message = f"messages: found a JSON {type(chat).__name__}, expected a list of messages"
        raise RowError(ErrorCode.PROMPT_INVALID, message)
    return chat


def _uris(row: dict[str, Any], manifest: ManifestSchema) -> list[str]:
    if manifest.form == c.URI:
        return [row[c.URI]]
    return [one[c.MEDIA_URI] for one in row[c.MEDIA] or []]


def _failure(error: Exception, otherwise: ErrorCode) -> RowFailure:
    if isinstance(error, RowError | MediaError | PromptError):
        return RowFailure(ErrorCode(error.code).value, str(error))
    return RowFailure(otherwise.value, f"{type(error).__name__}: {error}")


def _columns(rows: list[Prepared]) -> dict[str, list[Any]]:
    def each(value: Callable[[Prepared], Any]) -> list[Any]:
        return [None if row.failure else value(row) for row in rows]

    def seen(value: Callable[[Prepared], Any]) -> list[Any]:
        return [value(row) if row.receipts or not row.failure else None for row in rows]

    def first(value: Callable[[Receipt], Any]) -> list[Any]:
        return [value(row.receipts[0]) if row.receipts else None for row in rows]

    return {
        c.INPUT_IDS: each(lambda row: row.input_ids),
        c.PATCHES: each(_patches),
        c.GRID_THW: each(lambda row: [n for visual in row.visuals for n in visual.grid_thw]),
        c.MEDIA_KINDS: each(lambda row: [visual.kind for visual in row.visuals]),
        c.VISUAL_TOKENS: seen(lambda row: sum(one.visual_tokens for one in row.receipts)),
        c.SHA256: first(lambda receipt: receipt.sha256),
        c.HEIGHT: first(lambda receipt: receipt.height),
        c.WIDTH: first(lambda receipt: receipt.width),
        c.FRAME_TIMES_S: first(lambda receipt: list(receipt.frame_times_s)),
        c.RECEIPT: seen(lambda row: list(map(_receipt, row.receipts, row.uris))),
    }


def _patches(row: Prepared) -> memoryview | bytes:
    """The memory of the row's patches; copied here only when there are several media."""
    views = [memoryview(visual.patches.contiguous().numpy().data) for visual in row.visuals]
    flat = [view.cast("B") for view in views]
    return flat[0] if len(flat) == 1 else b"".join(flat)


def _receipt(receipt: Receipt, uri: str) -> dict[str, Any]:
    found = asdict(receipt)
    return {**found, "type": found.pop("kind"), "uri": uri}
