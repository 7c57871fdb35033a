"""Turns rows of videos into rows with the windows of each, or into row errors.

Windows of a fixed length need the video's header and index alone; of a large remote file no more is
fetched. What a window is, is in rules.py; how a row's windows become rows is in manifest.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from mediamill.model.media.limits import MediaLimits
from mediamill.pipeline.annotate.window_columns import DURATION_S, END_S, OF_SPLIT, START_S, WINDOWS
from mediamill.pipeline.annotate.window_rules import Window, WindowRules
from mediamill.pipeline.decoding.decoder_pool import (
    DecodeReply,
    DecodeRequest,
    DecoderPool,
    DecodeRules,
    MediumRequest,
)
from mediamill.pipeline.decoding.media_limits import media_limits
from mediamill.pipeline.decoding.probe import ProbeRequest, ProbeResult
from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.content import FetchedMedium
from mediamill.pipeline.fetching.fetcher import Fetcher, FetchRules
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.records import (
    MEDIA_BYTES,
    MEDIA_PATHS,
    RowFailure,
    failure_columns,
    failures,
    parsed_schema,
    read_schema,
)
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import MEDIA_TYPE, ManifestSchema

_VIDEO: Literal["video"] = "video"
_IMAGE = "image"
_MEASURER = "mediamill.pipeline.decoding.probe:load_prober"


class Fetch(Protocol):
    """The stage that fetches whole media."""

    def parts(self, table: pa.Table) -> Iterator[pa.Table]: ...


@dataclass(frozen=True)
class SplitRules:
    """What the job says of windows, and of reading media."""

    windows: WindowRules
    fetch: FetchRules
    limits: MediaLimits
    decoding: DecodeRules

    @classmethod
    def of(cls, job: JobConfig, base: str) -> "SplitRules":
        """base: the folder that the job was started in."""
        limits = job.limits
        return cls(
            WindowRules.of(job),
            FetchRules.of(job, base),
            media_limits(limits),
            DecodeRules(limits.decode_timeout_s, limits.decode_bytes),
        )


@dataclass(frozen=True)
class _Row:
    """One video. place: in the table. start_s, end_s: the part of it that the row names."""

    place: int
    uri: str | None
    start_s: float
    end_s: float | None


@dataclass(frozen=True)
class _Split:
    """What is known of a video in the end. duration_s: None where nobody has looked."""

    windows: Sequence[Window]
    duration_s: float | None


class Split:
    """The stage. Several threads may call it."""

    def __init__(
        self,
        manifest: ManifestSchema,
        rules: SplitRules,
        fetch: Fetch,
        count: Callable[[int], None],
    ) -> None:
        """fetch: for tables of the manifest's schema."""
        self._manifest, self._rules, self._fetch, self._count = manifest, rules, fetch, count
        self._fetcher: Fetcher | None = None
        self._decoder: DecoderPool | None = None
        if rules.windows.needs_media:
            self._fetcher = Fetcher(rules.fetch)
            arguments = {"limits": asdict(rules.limits)}
            self._decoder = DecoderPool(arguments, rules.decoding, _MEASURER)
        self._threads = ThreadPoolExecutor(rules.fetch.config.at_once, thread_name_prefix="head")

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `read_schema` -> one of `split_in_flight_schema`."""
        found: dict[int, _Split | RowFailure] = {}
        rows: list[_Row] = []
        for place, failure in enumerate(failures(table)):
            if failure is not None:
                found[place] = failure
                continue
            values = table.slice(place, 1).to_pylist()[0]
            try:
                if self._rules.windows.needs_media:
                    rows.append(self._row(place, values))
                else:
                    self._row(place, values)
                    given = self._rules.windows.given(values[START_S], values[END_S])
                    found[place] = _Split(given, None)
            except RowError as error:
                found[place] = RowFailure(error.code.value, error.message)
        found |= self._measured(table, rows)
        self._count(table.num_rows)
        return _table(table, [found[place] for place in range(table.num_rows)], self._manifest)

    def close(self) -> None:
        """Ends the processes that look at videos."""
        if self._decoder is not None:
            self._decoder.close()

    def _row(self, place: int, row: Mapping[str, Any]) -> _Row:
        if self._manifest.form == c.URI:
            return _Row(place, row[c.URI], 0.0, None)
        one = row[c.MEDIA][the_video(row[c.MEDIA])]
        return _Row(place, one[c.MEDIA_URI], one[c.MEDIA_START_S] or 0.0, one[c.MEDIA_END_S])

    def _measured(self, table: pa.Table, rows: Sequence[_Row]) -> dict[int, _Split | RowFailure]:
        """Of each row, what the video itself says."""
        found: dict[int, _Split | RowFailure] = {}
        whole = list(rows)
        if self._rules.windows.kind == "fixed":
            step = 2 * self._rules.fetch.config.at_once
            whole = []
            for start in range(0, len(rows), step):
                some, left = self._by_heads(rows[start : start + step])
                found |= some
                whole += left
        if whole:
            found |= self._by_wholes(table, whole)
        return found

    def _by_heads(self, rows: Sequence[_Row]) -> tuple[dict[int, _Split | RowFailure], list[_Row]]:
        """From header and index; and the rows whose whole files are needed."""
        fetched = list(self._threads.map(lambda row: self._head(row.uri), rows))
        asked = [
            (row, *one)
            for row, one in zip(rows, fetched, strict=True)
            if not isinstance(one, RowFailure)
        ]
        found: dict[int, _Split | RowFailure] = {
            row.place: one
            for row, one in zip(rows, fetched, strict=True)
            if isinstance(one, RowFailure)
        }
        left: list[_Row] = []
        try:
            questions = [
                DecodeRequest(
                    [MediumRequest(_content(medium), _VIDEO)], probe=ProbeRequest(whole=whole)
                )
                for _, medium, whole in asked
            ]
            for (row, _, _), answer in zip(asked, self._ask(questions), strict=True):
                if answer.probe is not None and answer.probe.whole_needed:
                    left.append(row)
                else:
                    found[row.place] = self._split(row, answer)
        finally:
            Spool.release(medium.path for _, medium, _ in asked)
        return found, left

    def _head(self, uri: str | None) -> "tuple[FetchedMedium, bool] | RowFailure":
        assert self._fetcher is not None
        try:
            return self._fetcher.fetch_partial(uri, Reservation(self._fetcher.budget))
        except RowError as error:
            return RowFailure(error.code.value, error.message)

    def _by_wholes(self, table: pa.Table, rows: Sequence[_Row]) -> dict[int, _Split | RowFailure]:
        """From all of their files."""
        windows = self._rules.windows
        probe = ProbeRequest(
            cuts=windows.kind == "scenes",
            threshold=windows.scene_threshold,
        )
        found: dict[int, _Split | RowFailure] = {}
        at = 0
        for part in self._fetch.parts(_videos_alone(table, rows, self._manifest)):
            mine, at = rows[at : at + part.num_rows], at + part.num_rows
            asked: list[_Row] = []
            questions: list[DecodeRequest] = []
            for number, (row, failure) in enumerate(zip(mine, failures(part), strict=True)):
                if failure is not None:
                    found[row.place] = failure
                    continue
                path = part[MEDIA_PATHS][number].as_py()[0]
                data = part[MEDIA_BYTES][number][0]
                content = memoryview(data.as_buffer()) if path is None else Path(path)
                asked.append(row)
                questions.append(DecodeRequest([MediumRequest(content, _VIDEO)], probe=probe))
            for row, answer in zip(asked, self._ask(questions), strict=True):
                found[row.place] = self._split(row, answer)
        return found

    def _ask(self, questions: Sequence[DecodeRequest]) -> list[DecodeReply]:
        assert self._decoder is not None
        return self._decoder.prepare(questions)

    def _split(self, row: _Row, answer: DecodeReply) -> _Split | RowFailure:
        if answer.failure is not None:
            return answer.failure
        assert answer.probe is not None
        try:
            return _Split(self._windows(row, answer.probe), answer.probe.duration_s)
        except RowError as error:
            return RowFailure(error.code.value, error.message)

    def _windows(self, row: _Row, measured: ProbeResult) -> list[Window]:
        """The windows of the part of the video that the row names."""
        rules, duration = self._rules.windows, measured.duration_s
        start = max(0.0, row.start_s)
        end = duration if row.end_s is None else min(row.end_s, duration)
        if start >= end and (start > 0 or row.end_s is not None):
            raise RowError(
                ErrorCode.MEDIA_EMPTY,
                f"the row's start_s and end_s ({row.start_s:g}, {row.end_s}) hold nothing of the "
                f"video, which lasts {duration:.3f} s",
            )
        if rules.kind == "fixed":
            return rules.fixed(start, end)
        return rules.scenes(start, end, measured.cuts)


def the_video(media: Sequence[Mapping[str, Any]] | None) -> int:
    """Which of a row's media is the video to be split: the only one, or the only video.

    Raises RowError, prompt_invalid.
    """
    kinds = [one[c.MEDIA_TYPE] for one in media or ()]
    if len(kinds) == 1:
        return 0
    if kinds.count(_VIDEO) == 1 and kinds.count(_IMAGE) == len(kinds) - 1:
        return kinds.index(_VIDEO)
    raise RowError(
        ErrorCode.PROMPT_INVALID,
        f"media: found {len(kinds)} media with {kinds.count(_VIDEO)} of type video, expected one "
        "video, and nothing else but pictures (type image) beside it",
    )


def split_in_flight_schema(manifest: ManifestSchema) -> pa.Schema:
    """Of the tables behind this stage: as finished rows have it, and what this stage found."""
    return pa.schema([*parsed_schema(manifest), *OF_SPLIT])


def _content(medium: FetchedMedium) -> memoryview | Path:
    if medium.path is not None:
        return medium.path
    assert medium.data is not None
    return medium.data.data


def _videos_alone(table: pa.Table, rows: Sequence[_Row], manifest: ManifestSchema) -> pa.Table:
    """These rows, with the video as their only medium."""
    part = table.take(pa.array([row.place for row in rows], pa.int64()))
    if manifest.form == c.URI:
        return part
    media = [
        [{c.MEDIA_TYPE: _VIDEO, c.MEDIA_URI: row.uri, c.MEDIA_START_S: None, c.MEDIA_END_S: None}]
        for row in rows
    ]
    number = part.schema.get_field_index(c.MEDIA)
    return part.set_column(number, part.schema.field(c.MEDIA), pa.array(media, MEDIA_TYPE))


def _table(
    table: pa.Table, found: Sequence[_Split | RowFailure], manifest: ManifestSchema
) -> pa.Table:
    failed = [one if isinstance(one, RowFailure) else None for one in found]
    splits = [one if isinstance(one, _Split) else None for one in found]
    windows = [
        None if one is None else [{START_S: start, END_S: end} for start, end in one.windows]
        for one in splits
    ]
    made: dict[str, list[Any]] = {
        **failure_columns(failed),
        DURATION_S: [None if one is None else one.duration_s for one in splits],
        WINDOWS: windows,
        c.ATTEMPT: [1] * len(found),
    }
    inherited = set(read_schema(manifest).names) - set(made)
    arrays = [
        pa.array(made[field.name], field.type)
        if field.name in made
        else table[field.name].cast(field.type)
        if field.name in inherited
        else pa.nulls(table.num_rows, field.type)
        for field in split_in_flight_schema(manifest)
    ]
    return pa.Table.from_arrays(arrays, schema=split_in_flight_schema(manifest))
