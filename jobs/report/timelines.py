"""Shows some videos of an annotation on a time axis, each with its windows."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mediamill.jobs.page.card import clock
from mediamill.jobs.page.row_card import text_of
from mediamill.model.urls import redact_text
from mediamill.pipeline.fetching.fetcher import FetchRules, fetch
from mediamill.pipeline.inspect.encode import Picture, encode
from mediamill.pipeline.inspect.output import Output, Position
from mediamill.pipeline.inspect.seen import SeenReader
from mediamill.schemas import columns as c
from mediamill.schemas.errors import RowError
from mediamill.schemas.job import FetchConfig, Limits

_VIDEOS, _WINDOWS = 6, 60
_INLINE_BYTES, _ALL_INLINE_BYTES = 3 * 1024**2, 10 * 1024**2
_FRAMES, _FRAME_SIZE = 2, (112, 84)
_COLUMNS = ("video_id", "window", "start_s", "end_s", c.RECEIPT, c.STATUS, c.ERROR_CODE,
            c.ERROR_MESSAGE, c.MEDIA)  # fmt: skip
_TYPES = {b"ftyp": "video/mp4", b"\x1aE\xdf\xa3": "video/webm"}


@dataclass(frozen=True)
class Window:
    """A window of a video. left, width: on the axis, 0..1."""

    start_s: float
    end_s: float
    from_to: str
    text: str
    status: str
    code: str
    left: float
    width: float
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Timeline:
    """A video. uri: the video itself, if it is small. note: why it is not there."""

    id: str
    uri: str
    note: str
    length: str
    windows: tuple[Window, ...]
    left_out: int


def timelines_of(
    output: Output, sampled: Iterable[Mapping[str, Any]], seen: SeenReader
) -> list[Timeline]:
    """Returns the timelines of the first few videos that the sampled windows are of."""
    videos = list(dict.fromkeys(row.get("video_id") for row in sampled))[:_VIDEOS]
    positions = _positions(output, videos)
    timelines, room = [], _ALL_INLINE_BYTES
    texts = [name for name in output.schema.names if name in ("text", *_prompts(output))]
    for video in videos:
        rows = list(output.rows(positions[video], [*_COLUMNS, *texts]).values())
        rows.sort(key=lambda row: (row.get("start_s") or 0.0, row.get("window") or 0))
        uri, note = _inline(rows, min(room, _INLINE_BYTES))
        room -= len(uri)
        timelines.append(_timeline(text_of(video), rows, texts, seen, uri, note))
    return timelines


def _prompts(output: Output) -> Sequence[str]:
    return tuple(output.parts.get("prompts") or ())


def _positions(output: Output, videos: Sequence[Any]) -> dict[Any, list[Position]]:
    positions: dict[Any, list[Position]] = {video: [] for video in videos}
    for chunk in output.chunks(["video_id"]):
        for index, video in enumerate(chunk.table["video_id"].to_pylist()):
            if video in positions:
                positions[video].append((chunk.file, chunk.first + index))
    return positions


def _timeline(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    seen: SeenReader,
    uri: str,
    note: str,
) -> Timeline:
    shown = rows[:_WINDOWS]
    length = max((row.get("end_s") or 0.0 for row in shown), default=0.0) or 1.0
    windows = []
    for row, media in zip(shown, seen.read(shown), strict=True):
        start, end = row.get("start_s") or 0.0, row.get("end_s") or 0.0
        frames = [frame for medium in media for frame in medium.frames]
        step = max(1, len(frames) // _FRAMES)
        words = [text_of(row[text]) for text in texts if row.get(text)]
        message = redact_text(text_of(row.get(c.ERROR_MESSAGE)))
        windows.append(
            Window(
                start,
                end,
                f"{clock(start)} to {clock(end)}",
                " · ".join(words) or message,
                text_of(row.get(c.STATUS)),
                text_of(row.get(c.ERROR_CODE)),
                start / length,
                max(0.0, end - start) / length,
                tuple(encode(frame, *_FRAME_SIZE) for frame in frames[::step][:_FRAMES]),
            )
        )
    return Timeline(name, uri, note, clock(length), tuple(windows), len(rows) - len(shown))


def _inline(rows: Sequence[Mapping[str, Any]], most: int) -> tuple[str, str]:
    """The video as a data URI, or why it is not one."""
    receipts = [receipt for row in rows for receipt in row.get(c.RECEIPT) or ()]
    named = [receipt for receipt in receipts if receipt.get("uri")]
    if not named:
        return "", "The video is not in a file, so its frames are shown."
    limits = Limits(max_bytes=max(most, 1), fetch_timeout_s=20.0)
    rules = FetchRules(FetchConfig(tries=2), limits, str(Path.cwd()), ("/",))
    try:
        data = fetch(named[0]["uri"], rules)
    except RowError as error:
        if error.code == "fetch_too_large":
            return "", "The video is too large for this page, so its frames are shown."
        return "", str(error)
    if hashlib.sha256(data).hexdigest() != named[0]["sha256"]:
        return "", "The file has changed since: the model saw another content."
    kind = _TYPES.get(data[4:8]) or _TYPES.get(data[:4])
    if kind is None:
        return "", "Browsers do not play this format, so its frames are shown."
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}", ""
