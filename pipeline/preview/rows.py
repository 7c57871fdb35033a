"""Takes a few rows through the stages of a job in this process, and times each of them."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from mediamill.model.text.prompt import IMAGE_PAD, VIDEO_PAD
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.pipeline.annotate.window_columns import SPLIT_ERROR_FIELDS
from mediamill.pipeline.fetching.fetcher import FetchRules
from mediamill.pipeline.inspect.output import shown_rows
from mediamill.pipeline.inspect.prepared import seen_of_patches
from mediamill.pipeline.inspect.seen import Frame, SeenMedium, ShownSize
from mediamill.pipeline.ray_cluster.pool_sizes import Pools
from mediamill.pipeline.records import MEDIA_BYTES, MEDIA_PATHS
from mediamill.pipeline.stages.fetch import Fetch
from mediamill.pipeline.stages.prepare import Prepare
from mediamill.pipeline.tasks.answer_cache import AnswerCache
from mediamill.schemas import columns as c
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.task import Task

if TYPE_CHECKING:
    from mediamill.pipeline.stages.generate import Generate

_AT_ONCE = 16  # rows whose media are in memory
_FRAMES, _SIDE = 8, 640  # frames of a medium that are shown, and pixels of their longer side
_NOT_SHOWN = (c.ROW, *(field.name for field in SPLIT_ERROR_FIELDS))  # a result lacks them
_PADS = re.compile("|".join(f"(?:{re.escape(pad)})+" for pad in (IMAGE_PAD, VIDEO_PAD)))


@dataclass(frozen=True)
class PreviewRow:
    """A row after all stages.

    values: by column of the result, without those that name a run. media: what the model saw.
    prompts: of each question, as the model was given it; none if the row failed before.
    source_bytes: of its media, as fetched.
    prepare_s: of one worker. generate_s: while the other rows were in the engine too; None if the
    engine had nothing to do.
    """

    values: Mapping[str, Any]
    media: tuple[SeenMedium, ...]
    prompts: tuple[str, ...]
    source_bytes: int
    prepare_s: float
    generate_s: float | None
    stratum: str = ""


@dataclass(frozen=True)
class StageSeconds:
    """fetch, generate: of all rows at once; prepare: of all rows, one after the other."""

    fetch: float = 0.0
    prepare: float = 0.0
    generate: float = 0.0

    def __add__(self, other: "StageSeconds") -> "StageSeconds":
        return StageSeconds(
            self.fetch + other.fetch, self.prepare + other.prepare, self.generate + other.generate
        )


class RowStages:
    """The job's own stages: fetch, prepare in confined processes, and generate."""

    def __init__(
        self,
        manifest: ManifestSchema,
        job: JobConfig,
        task: Task,
        checkpoint: Path,
        pools: Pools,
        threads: ThreadPoolExecutor,
    ) -> None:
        """The engine begins to load in one of `threads`. Raises ModelError."""
        base = str(Path.cwd())
        self._manifest, self._job, self._task = manifest, job, task
        self._checkpoint, self._pools, self._threads = checkpoint, pools, threads
        self._engine: Future[Generate] = threads.submit(self._load)
        self._fetch = Fetch(manifest, FetchRules.of(job, base))
        self._prepare = Prepare(manifest, job, task, checkpoint, lambda _: None, base)
        self._tokenizer = Tokenizer.load(checkpoint)
        self._warm = False
        self.load_s = 0.0

    def close(self) -> None:
        """Ends the decoders."""
        self._prepare.close()

    def run(
        self, table: pa.Table, on_phase: Callable[[str], None]
    ) -> tuple[list[PreviewRow], StageSeconds]:
        """Takes a table of `read_schema` through all stages. Raises ModelError."""
        rows: list[PreviewRow] = []
        seconds = StageSeconds()
        for start in range(0, table.num_rows, _AT_ONCE):
            part, own = self._run(table.slice(start, _AT_ONCE), on_phase)
            rows += part
            seconds += own
        return rows, seconds

    def _run(
        self, table: pa.Table, on_phase: Callable[[str], None]
    ) -> tuple[list[PreviewRow], StageSeconds]:
        on_phase("fetching media")
        started = time.monotonic()
        fetched = self._fetch(table)
        fetch_s = time.monotonic() - started
        sizes = _sizes(fetched)
        if not self._engine.done():
            on_phase("loading the model")
        generate = self._engine.result()  # its load would slow the decoders
        on_phase("decoding, resizing and tokenizing")
        self._warm_up(table, fetched)
        prepared, prepare_s = [], []
        for number in range(fetched.num_rows):
            started = time.monotonic()
            prepared.append(self._prepare(fetched.slice(number, 1)))
            prepare_s.append(time.monotonic() - started)
        del fetched
        on_phase("asking the model")
        if self._pools.replica_gpus and not self._warm:  # the first rows of a process are slow
            generate(prepared[0])
        self._warm = True
        started = time.monotonic()
        answered = list(self._threads.map(lambda row: _timed(generate, row), prepared))
        generate_s = time.monotonic() - started
        rows = [
            self._row(*stages) for stages in zip(prepared, answered, sizes, prepare_s, strict=True)
        ]
        return rows, StageSeconds(fetch_s, sum(prepare_s), generate_s)

    def _load(self) -> "Generate":
        started = time.monotonic()
        from mediamill.pipeline.stages.generate import EngineSize, Generate

        size = EngineSize.of(self._pools)
        registry = AnswerCache() if self._task.dedupe else None
        generate = Generate(
            self._manifest, self._job, self._checkpoint, lambda _: None, size,
            task=self._task, registry=registry,
        )  # fmt: skip
        self.load_s = time.monotonic() - started
        return generate

    def _warm_up(self, table: pa.Table, fetched: pa.Table) -> None:
        """Starts the decoders with a row that was fetched, so that no row's time has that."""
        if self._warm:
            return
        codes = fetched[c.ERROR_CODE].to_pylist()
        for number in [number for number, code in enumerate(codes) if code is None][:1]:
            self._prepare(self._fetch(table.slice(number, 1)))

    def _row(
        self,
        prepared: pa.Table,
        answered: tuple[pa.Table, float],
        size: int,
        prepare_s: float,
    ) -> PreviewRow:
        parsed, seconds = answered
        [values] = shown_rows(parsed)
        values = {name: value for name, value in values.items() if name not in _NOT_SHOWN}
        values[c.STATUS] = values[c.STATUS] or c.STATUS_OK
        values[c.MODEL] = self._job.model
        [ids] = prepared[c.INPUT_IDS].to_pylist()
        prompts = tuple(self._prompt(prompt) for prompt in ids or ())
        asked = ids is not None
        return PreviewRow(
            values, _media(prepared), prompts, size, prepare_s, seconds if asked else None
        )

    def _prompt(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False)

        def count(match: re.Match[str]) -> str:
            pad = IMAGE_PAD if match.group().startswith(IMAGE_PAD) else VIDEO_PAD
            return f"{pad} × {len(match.group()) // len(pad):,}"

        return _PADS.sub(count, text)


def _timed(stage: "Generate", table: pa.Table) -> tuple[pa.Table, float]:
    started = time.monotonic()
    return stage(table), time.monotonic() - started


def _media(prepared: pa.Table) -> tuple[SeenMedium, ...]:
    """What the model saw; without frames if the row failed after its receipts were made."""
    [receipts] = prepared[c.RECEIPT].to_pylist()
    if not receipts or not prepared[c.PATCHES][0].is_valid:
        return ()
    media = seen_of_patches(
        memoryview(prepared[c.PATCHES][0].as_buffer()),
        prepared[c.GRID_THW][0].as_py(),
        prepared[c.MEDIA_KINDS][0].as_py(),
        receipts,
        size=ShownSize(frames=_FRAMES),
    )
    return tuple(replace(m, frames=tuple(map(_smaller, m.frames))) for m in media)


def _smaller(frame: Frame) -> Frame:
    if max(frame.pixels.shape) <= _SIDE:
        return frame
    picture = Image.fromarray(frame.pixels)
    picture.thumbnail((_SIDE, _SIDE))
    return replace(frame, pixels=np.asarray(picture))


def _sizes(table: pa.Table) -> list[int]:
    """The bytes of each row's media."""
    sizes = []
    for data, paths in zip(table[MEDIA_BYTES], table[MEDIA_PATHS].to_pylist(), strict=True):
        size = 0
        for number in range(len(data) if data.is_valid else 0):
            size += len(data[number].as_buffer()) if data[number].is_valid else 0
        for path in paths or ():
            if path is not None:
                with suppress(OSError):
                    size += Path(path).stat().st_size
        sizes.append(size)
    return sizes
