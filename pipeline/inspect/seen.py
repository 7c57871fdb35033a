"""Shows again what the model saw of a row's media: the frames of its receipts.

The media are fetched again, decoded in confined processes by the rules of the job, resized to the
size in the receipt, and compared with its hashes.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mediamill.model.inputs import VisualKind
from mediamill.pipeline.decoding.decode_request import RenderRequest
from mediamill.pipeline.decoding.decoder_pool import (
    DecodeReply,
    DecodeRequest,
    DecoderPool,
    MediumRequest,
)
from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.content import FetchedMedium
from mediamill.pipeline.fetching.fetcher import Fetcher, FetchRules
from mediamill.pipeline.fetching.media_uris import shown
from mediamill.pipeline.fetching.spool import Spool
from mediamill.schemas import columns as c
from mediamill.schemas.errors import RowError
from mediamill.schemas.job import FetchConfig, Limits

_FACTORY = "mediamill.pipeline.decoding.renderer:load_renderer"
_ROWS_AT_ONCE, _FETCHES_AT_ONCE = 16, 8
_MEMORY_BYTES = 4 * 1024**2  # larger media are read from files
_DECODE_S, _FETCH_S = 60.0, 20.0

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """A picture, or a frame of a video: uint8 [H, W, 3], upright RGB.

    index, time_s: of a video's frame, counted from its first one; time_s is None where unknown.
    """

    pixels: Pixels
    index: int | None = None
    time_s: float | None = None


@dataclass(frozen=True)
class SeenMedium:
    """What the model saw of one medium of a row.

    frames: none if it cannot be shown; of many frames, some that are evenly spread.
    frame_count: that the model saw. height, width: of a frame as the model saw it, in pixels.
    note: why there are no frames, or what differs from what the model saw; empty if nothing does.
    """

    kind: VisualKind
    uri: str
    frames: tuple[Frame, ...]
    frame_count: int
    height: int
    width: int
    note: str = ""


@dataclass(frozen=True)
class ShownSize:
    """How much of a medium is shown: its frames at most, and their pixels at most."""

    frames: int = 8
    height: int = 240
    width: int = 320


class SeenReader:
    """Fetches and renders the media of rows. Its processes start with the first medium."""

    def __init__(
        self,
        size: ShownSize | None = None,
        base: str | None = None,
        seconds: float = 60.0,
        workers: int = 2,
    ) -> None:
        """base: the folder that relative paths are relative to; None for the current one.

        seconds: after which no further medium is fetched.
        """
        config, limits = FetchConfig(tries=2), Limits(fetch_timeout_s=_FETCH_S)
        folder = str(Path.cwd()) if base is None else base
        rules = FetchRules(config, limits, folder, ("/",), memory_bytes=_MEMORY_BYTES)
        self._fetcher = Fetcher(rules)
        self._size, self._workers = size or ShownSize(), workers
        self._seconds, self._end = seconds, math.inf
        self._pool: DecoderPool | None = None

    def read(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[SeenMedium, ...]]:
        """Yields the media of each row: one for each element of the column `receipt`."""
        if self._end == math.inf:
            self._end = time.monotonic() + self._seconds
        remaining = iter(rows)
        while batch := list(islice(remaining, _ROWS_AT_ONCE)):
            yield from self._read(batch)

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.close()

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[SeenMedium, ...]]:
        receipts = [list(row.get(c.RECEIPT) or ()) for row in rows]
        uris = {receipt["uri"] for row in receipts for receipt in row if receipt.get("uri")}
        with ThreadPoolExecutor(_FETCHES_AT_ONCE) as threads:
            media = dict(zip(uris, threads.map(self._fetch, uris), strict=True))
        try:
            media_receipts = [receipt for row in receipts for receipt in row]
            rendered = iter(self._render(media_receipts, media))
            return [tuple(next(rendered) for _ in row) for row in receipts]
        finally:
            Spool.release(
                medium.path
                for medium in media.values()
                if isinstance(medium, FetchedMedium) and medium.path is not None
            )

    def _fetch(self, uri: str) -> FetchedMedium | str:
        if time.monotonic() > self._end:
            return "not fetched: the time for pictures was over"
        try:
            return self._fetcher.fetch(uri, Reservation(self._fetcher.budget))
        except RowError as error:
            return str(error)

    def _render(
        self, receipts: Sequence[Mapping[str, Any]], media: Mapping[str, FetchedMedium | str]
    ) -> list[SeenMedium]:
        seen: dict[int, SeenMedium] = {}
        requests: dict[int, DecodeRequest] = {}
        for number, receipt in enumerate(receipts):
            medium = media.get(receipt.get("uri") or "", "the row names no file for it")
            if isinstance(medium, str):
                seen[number] = _unseen(receipt, medium)
            else:
                requests[number] = DecodeRequest([self._request(receipt, medium)])
        for number, reply in zip(requests, self._decode(list(requests.values())), strict=True):
            seen[number] = _seen(receipts[number], reply)
        return [seen[number] for number in range(len(receipts))]

    def _request(self, receipt: Mapping[str, Any], medium: FetchedMedium) -> MediumRequest:
        size = self._size
        render = RenderRequest(
            receipt["height"],
            receipt["width"],
            tuple(receipt["frame_indices"] or ()),
            receipt["visual_tokens"] or 0,
            size.frames,
            size.height,
            size.width,
        )
        content = medium.path if medium.data is None else medium.data.data
        assert content is not None
        return MediumRequest(content, _kind(receipt), render=render)

    def _decode(self, requests: Sequence[DecodeRequest]) -> list[DecodeReply]:
        if not requests:
            return []
        if self._pool is None:
            limits = Limits(decode_timeout_s=_DECODE_S)
            self._pool = DecoderPool({}, limits, _FACTORY, self._workers)
        return self._pool.prepare(requests)


def media_of(row: Mapping[str, Any]) -> tuple[SeenMedium, ...]:
    """Returns the media of a row by its receipts alone, without frames; nothing is fetched."""
    return tuple(_unseen(receipt, "") for receipt in row.get(c.RECEIPT) or ())


def _kind(receipt: Mapping[str, Any]) -> VisualKind:
    return "video" if receipt["type"] == "video" else "image"


def _unseen(receipt: Mapping[str, Any], note: str) -> SeenMedium:
    return SeenMedium(
        _kind(receipt),
        shown(receipt.get("uri") or ""),
        (),
        max(1, len(receipt["frame_indices"] or ())),
        receipt["height"] or 0,
        receipt["width"] or 0,
        note,
    )


def _seen(receipt: Mapping[str, Any], reply: DecodeReply) -> SeenMedium:
    """Compares what was decoded with the receipt."""
    if reply.failure is not None:
        return _unseen(receipt, f"cannot be shown: {reply.failure.message}")
    (now,), (visual,) = reply.receipts, reply.visuals
    if now.sha256 != receipt["sha256"]:
        return _unseen(receipt, "the file has changed since: the model saw another content")
    note = ""
    if None not in (now.seen_sha256, receipt["seen_sha256"]) and (
        now.seen_sha256 != receipt["seen_sha256"]
    ):
        note = "decoded with other pixels than the model saw: another version of the decoder?"
    count, height, width = visual.grid_thw
    pixels = np.frombuffer(reply.patches, np.uint8).reshape(count, height, width, 3).copy()
    times: Sequence[float | None] = now.frame_times_s or (None,) * count
    indices: Sequence[int | None] = now.frame_indices or (None,) * count
    frames = tuple(map(Frame, pixels, indices, times))
    return SeenMedium(
        now.kind,
        shown(receipt["uri"]),
        frames,
        max(1, len(receipt["frame_indices"] or ())),
        receipt["height"],
        receipt["width"],
        note,
    )
