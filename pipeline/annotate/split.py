"""The split stage of an annotation: finds the windows of each video, or the row's error.

Windows of a fixed length need only the header and index of a video; of a large remote file only
these are fetched. windows.py defines the windows; window_manifest.py makes rows of them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

from mediamill.pipeline.annotate.window_columns import (
    DURATION_S,
    END_S,
    SPLIT_FIELDS,
    START_S,
    WINDOWS,
)
from mediamill.pipeline.annotate.windows import (
    Window,
    fixed_windows,
    given_windows,
    scene_windows,
)
from mediamill.pipeline.decoding.decoder_pool import (
    DecodeReply,
    DecodeRequest,
    DecoderPool,
    MediumRequest,
)
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
    replace_columns,
)
from mediamill.pipeline.row_values import row_values
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.job import Limits
from mediamill.schemas.job_tasks import AnnotateConfig
from mediamill.schemas.manifest import MEDIA_TYPE, ManifestSchema

_VIDEO: Literal["video"] = "video"
_IMAGE = "image"
_PROBER = "mediamill.pipeline.decoding.probe:load_prober"


class FetchStage(Protocol):
    """The stage that fetches whole media."""

    def parts(self, table: pa.Table) -> Iterator[pa.Table]: ...


@dataclass(frozen=True)
class _VideoPart:
    """The part of a video that a row names: from start_s to end_s (None: its end).

    index: of the row in the table.
    """

    index: int
    uri: str | None
    start_s: float
    end_s: float | None


@dataclass(frozen=True)
class _SplitVideo:
    """The windows of a video. duration_s: None if the video was not read."""

    windows: Sequence[Window]
    duration_s: float | None


_Result = _SplitVideo | RowFailure


class SplitVideos:
    """Finds the windows of the videos of a table. Several threads may call it."""

    def __init__(
        self,
        manifest: ManifestSchema,
        config: AnnotateConfig,
        limits: Limits,
        fetch_rules: FetchRules,
        fetch: FetchStage,
        count: Callable[[int], None],
    ) -> None:
        """config, limits: sections of the job. fetch: takes tables of the manifest's schema."""
        self._manifest, self._config = manifest, config
        self._fetch_rules, self._fetch, self._count = fetch_rules, fetch, count
        self._fetcher: Fetcher | None = None
        self._decoder: DecoderPool | None = None
        if config.windows != "given":
            self._fetcher = Fetcher(fetch_rules)
            self._decoder = DecoderPool({}, limits, _PROBER)
        self._threads = ThreadPoolExecutor(fetch_rules.config.at_once, thread_name_prefix="head")

    def __call__(self, table: pa.Table) -> pa.Table:
        """Takes a table of `read_schema`, and returns one of `split_in_flight_schema`."""
        results: dict[int, _Result] = {}
        parts: list[_VideoPart] = []
        given = (START_S, END_S) if self._config.windows == "given" else ()
        columns = [self._manifest.form, *given]
        for index, failure in enumerate(failures(table)):
            if failure is not None:
                results[index] = failure
                continue
            try:
                row = row_values(table, index, columns)
                part = self._part(index, row)
                if given:
                    windows = given_windows(self._config, row[START_S], row[END_S])
                    results[index] = _SplitVideo(windows, None)
                else:
                    parts.append(part)
            except RowError as error:
                results[index] = RowFailure.of(error)
        results |= self._measure(table, parts)
        self._count(table.num_rows)
        return _table(table, [results[index] for index in range(table.num_rows)], self._manifest)

    def close(self) -> None:
        """Stops the processes that decode videos."""
        if self._decoder is not None:
            self._decoder.close()

    def _part(self, index: int, row: Mapping[str, Any]) -> _VideoPart:
        if self._manifest.form == c.URI:
            return _VideoPart(index, row[c.URI], 0.0, None)
        video = row[c.MEDIA][the_video(row[c.MEDIA])]
        start_s, end_s = video[c.MEDIA_START_S] or 0.0, video[c.MEDIA_END_S]
        return _VideoPart(index, video[c.MEDIA_URI], start_s, end_s)

    def _measure(self, table: pa.Table, parts: Sequence[_VideoPart]) -> dict[int, _Result]:
        """Splits videos whose windows depend on their duration or scene cuts."""
        results: dict[int, _Result] = {}
        whole_needed = list(parts)
        if self._config.windows == "fixed":
            step = 2 * self._fetch_rules.config.at_once
            whole_needed = []
            for start in range(0, len(parts), step):
                measured, not_measured = self._by_headers(parts[start : start + step])
                results |= measured
                whole_needed += not_measured
        if whole_needed:
            results |= self._by_whole_files(table, whole_needed)
        return results

    def _by_headers(
        self, parts: Sequence[_VideoPart]
    ) -> tuple[dict[int, _Result], list[_VideoPart]]:
        """Splits videos by header and index; also returns those whose whole file is needed."""
        results: dict[int, _Result] = {}
        fetched: list[tuple[_VideoPart, FetchedMedium, bool]] = []
        heads = list(self._threads.map(lambda part: self._fetch_head(part.uri), parts))
        for part, head in zip(parts, heads, strict=True):
            if isinstance(head, RowFailure):
                results[part.index] = head
            else:
                fetched.append((part, *head))
        whole_needed: list[_VideoPart] = []
        try:
            requests = [
                DecodeRequest(
                    [MediumRequest(_content(medium), _VIDEO)], probe=ProbeRequest(whole=whole)
                )
                for _, medium, whole in fetched
            ]
            for (part, _, _), reply in zip(fetched, self._decode(requests), strict=True):
                if reply.probe is not None and reply.probe.whole_needed:
                    whole_needed.append(part)
                else:
                    results[part.index] = self._split(part, reply)
        finally:
            Spool.release(medium.path for _, medium, _ in fetched)
        return results, whole_needed

    def _fetch_head(self, uri: str | None) -> tuple[FetchedMedium, bool] | RowFailure:
        assert self._fetcher is not None
        try:
            return self._fetcher.fetch_partial(uri, Reservation(self._fetcher.budget))
        except RowError as error:
            return RowFailure.of(error)

    def _by_whole_files(self, table: pa.Table, parts: Sequence[_VideoPart]) -> dict[int, _Result]:
        """Splits videos by their whole files."""
        probe = ProbeRequest(
            cuts=self._config.windows == "scenes", threshold=self._config.scene_threshold
        )
        results: dict[int, _Result] = {}
        first = 0
        for fetched in self._fetch.parts(_videos_alone(table, parts, self._manifest)):
            fetched_parts = parts[first : first + fetched.num_rows]
            first += fetched.num_rows
            readable: list[_VideoPart] = []
            requests: list[DecodeRequest] = []
            row_failures = failures(fetched)
            for number, (part, failure) in enumerate(zip(fetched_parts, row_failures, strict=True)):
                if failure is not None:
                    results[part.index] = failure
                    continue
                path = fetched[MEDIA_PATHS][number].as_py()[0]
                data = fetched[MEDIA_BYTES][number][0]
                content = memoryview(data.as_buffer()) if path is None else Path(path)
                readable.append(part)
                requests.append(DecodeRequest([MediumRequest(content, _VIDEO)], probe=probe))
            for part, reply in zip(readable, self._decode(requests), strict=True):
                results[part.index] = self._split(part, reply)
        return results

    def _decode(self, requests: Sequence[DecodeRequest]) -> list[DecodeReply]:
        assert self._decoder is not None
        return self._decoder.prepare(requests)

    def _split(self, part: _VideoPart, reply: DecodeReply) -> _Result:
        if reply.failure is not None:
            return reply.failure
        assert reply.probe is not None
        try:
            return _SplitVideo(self._windows(part, reply.probe), reply.probe.duration_s)
        except RowError as error:
            return RowFailure.of(error)

    def _windows(self, part: _VideoPart, probe: ProbeResult) -> list[Window]:
        duration = probe.duration_s
        start = max(0.0, part.start_s)
        end = duration if part.end_s is None else min(part.end_s, duration)
        # Not start >= end, which no comparison with NaN fulfils.
        if math.isnan(part.start_s) or (not start < end and (start > 0 or part.end_s is not None)):
            raise RowError(
                ErrorCode.MEDIA_EMPTY,
                f"the row's start_s and end_s ({part.start_s:g}, {part.end_s}) hold nothing of the "
                f"video, which lasts {duration:.3f} s",
            )
        if self._config.windows == "fixed":
            return fixed_windows(self._config, start, end)
        return scene_windows(self._config, start, end, probe.cuts)


def the_video(media: Sequence[Mapping[str, Any]] | None) -> int:
    """Returns the index of the video among a row's media: the only medium, or the only video.

    Raises RowError prompt_invalid.
    """
    if not media:
        raise RowError(ErrorCode.MEDIA_EMPTY, "media: found no medium, expected a video")
    if None in media:
        raise RowError(ErrorCode.MEDIA_EMPTY, "media: found null in the list, expected a medium")
    kinds = [medium[c.MEDIA_TYPE] for medium in media]
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
    """Returns the schema of this stage's tables: `parsed_schema` and the split's columns."""
    return pa.schema([*parsed_schema(manifest), *SPLIT_FIELDS])


def _content(medium: FetchedMedium) -> memoryview | Path:
    if medium.path is not None:
        return medium.path
    assert medium.data is not None
    return medium.data.data


def _videos_alone(
    table: pa.Table, parts: Sequence[_VideoPart], manifest: ManifestSchema
) -> pa.Table:
    """Returns these rows, with the video as their only medium."""
    rows = table.take(pa.array([part.index for part in parts], pa.int64()))
    if manifest.form == c.URI:
        return rows
    media = [
        [{c.MEDIA_TYPE: _VIDEO, c.MEDIA_URI: part.uri, c.MEDIA_START_S: None, c.MEDIA_END_S: None}]
        for part in parts
    ]
    column = rows.schema.get_field_index(c.MEDIA)
    return rows.set_column(column, rows.schema.field(c.MEDIA), pa.array(media, MEDIA_TYPE))


def _table(table: pa.Table, results: Sequence[_Result], manifest: ManifestSchema) -> pa.Table:
    row_failures = [result if isinstance(result, RowFailure) else None for result in results]
    videos = [result if isinstance(result, _SplitVideo) else None for result in results]
    windows = [
        None if video is None else [{START_S: start, END_S: end} for start, end in video.windows]
        for video in videos
    ]
    new: dict[str, list[Any]] = {
        **failure_columns(row_failures),
        DURATION_S: [None if video is None else video.duration_s for video in videos],
        WINDOWS: windows,
        c.ATTEMPT: [1] * len(results),
    }
    schema, filled = split_in_flight_schema(manifest), {*read_schema(manifest).names, *new}
    empty = {name: [None] * len(results) for name in schema.names if name not in filled}
    return replace_columns(table, {**empty, **new}, schema)
