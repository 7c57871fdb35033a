"""Adds size, kind, height, width and duration to manifest rows, from the media's headers.

Headers are read by range requests and parsed in the confined decode workers. A medium that cannot
be read has nulls: only the job that reads it says what is wrong with it.
"""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from mediamill.pipeline.decoding.decoder_pool import DecodeRequest, DecoderPool, MediumRequest
from mediamill.pipeline.decoding.probe import ProbeRequest, ProbeResult
from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.content import FetchedMedium
from mediamill.pipeline.fetching.fetcher import Fetcher, FetchRules
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.sources.build import Probe
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.errors import RowError
from mediamill.schemas.job import FetchConfig, Limits

# The results of jobs have columns `height` and `width`, of what the model sees.
FIELDS = (
    pa.field("source_bytes", pa.int64()),
    pa.field("source_kind", pa.string()),
    pa.field("source_height", pa.int32()),
    pa.field("source_width", pa.int32()),
    pa.field("source_duration_s", pa.float64()),
)
_HEADER_BYTES = 128 * 1024
_MEMORY_BYTES = 64 * 1024  # larger local files are read where they lie
_ROWS = 256  # probed at once: their headers are in memory
_PROBER = "mediamill.pipeline.sources.header_prober:load_header_prober"


class MediaProber:
    """Probes the media of one source. source: a path or URL, whose folder may be read."""

    def __init__(self, source: str, fetch: FetchConfig | None = None) -> None:
        config, limits = fetch or FetchConfig(), Limits(decode_timeout_s=60.0, decode_bytes=2**30)
        base = str(Path.cwd())
        roots = [base]
        if storage.scheme(source) == "file":
            path = Path(source)
            roots.append(str(path if path.is_dir() else _folder(path)))
        self._fetcher = Fetcher(
            FetchRules(
                config,
                limits,
                base,
                tuple(roots),
                memory_bytes=_MEMORY_BYTES,
                in_place=sys.platform == "linux",
            )
        )
        self._decoder = DecoderPool({}, limits, _PROBER)
        self._threads = ThreadPoolExecutor(config.at_once, thread_name_prefix="probe")

    @property
    def probe(self) -> Probe:
        """What `build_manifest` calls."""
        return Probe(FIELDS, self.add)

    def add(self, table: pa.Table) -> pa.Table:
        """Returns the table with FIELDS."""
        if c.URI not in table.column_names:
            rows: list[tuple[object, ...]] = [(None,) * len(FIELDS)] * table.num_rows
        else:
            found = table[c.URI].to_pylist()
            rows = []
            for start in range(0, len(found), _ROWS):
                rows += self._probe(found[start : start + _ROWS])
        for field, values in zip(FIELDS, zip(*rows, strict=True), strict=True):
            table = table.append_column(field, pa.array(list(values), field.type))
        return table

    def _probe(self, addresses: Sequence[str | None]) -> list[tuple[object, ...]]:
        heads = list(self._threads.map(self._fetch, addresses))
        readable = [head for head in heads if head is not None]
        requests = [
            DecodeRequest([MediumRequest(_content(medium))], probe=ProbeRequest(whole=whole))
            for medium, whole in readable
        ]
        try:
            replies = iter(self._decoder.prepare(requests))
            return [
                (None,) * len(FIELDS) if head is None else _values(head[0], next(replies).probe)
                for head in heads
            ]
        finally:
            Spool.release(medium.path for medium, _ in readable)

    def _fetch(self, uri: str | None) -> tuple[FetchedMedium, bool] | None:
        try:
            return self._fetcher.fetch_partial(
                uri, Reservation(self._fetcher.budget), _HEADER_BYTES
            )
        except RowError:
            return None


def _content(medium: FetchedMedium) -> memoryview | Path:
    if medium.path is not None:
        return medium.path
    assert medium.data is not None
    return medium.data.data


def _values(medium: FetchedMedium, probe: ProbeResult | None) -> tuple[object, ...]:
    if probe is None:
        return (medium.size, None, None, None, None)
    seconds = probe.duration_s if probe.kind == "video" else None
    return (medium.size, probe.kind, probe.height or None, probe.width or None, seconds or None)


def _folder(path: Path) -> Path:
    """The folder of a file, or above the wildcards of a glob."""
    while not path.is_dir():
        path = path.parent
    return path
