"""Chooses a few rows of a manifest that differ: by the kind and the size of their media."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from mediamill.pipeline.forecast.cheap_values import cheap_sizes
from mediamill.pipeline.forecast.estimates import Floats
from mediamill.pipeline.forecast.pending_rows import PendingRows
from mediamill.pipeline.manifest.manifest import Manifest
from mediamill.pipeline.sources.media_names import PICTURES, VIDEOS, suffix
from mediamill.schemas import columns as c
from mediamill.schemas.arrow_convert import take_rows
from mediamill.schemas.job import VideoConfig

_FRAME_ROWS, _FRAME_BYTES = 2048, 64 << 20  # of which kind and size are looked at
_SIZES = ("large", "small", "medium")  # in the order in which rows are chosen
_KIND_COLUMN = "source_kind"  # of `mediamill manifest --probe`


def choose_rows(
    manifest: Manifest, count: int, seed: int, video: VideoConfig
) -> tuple[pa.Table, list[str]]:
    """Returns random rows as a table of `read_schema`, and the kind and size of each.

    Kinds and sizes take turns, so that rare ones are there too. The same seed gives the same rows.
    """
    rng = np.random.default_rng(seed)
    pending = PendingRows(manifest, {})
    most = min(_FRAME_ROWS, int(_FRAME_BYTES / pending.row_bytes(rng)))
    table = pending.draw(max(count, most), rng).table
    kinds = _kinds(table)
    sizes, _ = cheap_sizes(table, video, str(Path.cwd()))
    labels = _labels(kinds, sizes)
    queues: dict[str, list[int]] = {}
    for place in rng.permutation(table.num_rows).tolist():
        queues.setdefault(labels[place], []).append(place)
    order = sorted(queues, key=lambda label: (_rank(label), label))
    chosen: list[int] = []
    while len(chosen) < min(count, table.num_rows):
        for label in order:
            if queues[label] and len(chosen) < count:
                chosen.append(queues[label].pop())
    chosen.sort()
    return take_rows(table, np.array(chosen, np.int64)), [labels[place] for place in chosen]


def _kinds(table: pa.Table) -> list[str]:
    if _KIND_COLUMN in table.column_names:
        known = {"image": "picture", "video": "video"}
        return [known.get(str(kind), "medium") for kind in table[_KIND_COLUMN].to_pylist()]
    if c.URI in table.column_names:
        return [_kind_of(uri) for uri in table[c.URI].to_pylist()]
    rows = table[c.MEDIA].to_pylist()
    return [_kind_of_media(media or []) for media in rows]


def _kind_of_media(media: list[dict[str, object] | None]) -> str:
    kinds = [
        {"image": "picture", "video": "video"}.get(str((medium or {}).get(c.MEDIA_TYPE)))
        or _kind_of((medium or {}).get(c.MEDIA_URI))
        for medium in media
    ]
    if len(kinds) == 1:
        return kinds[0]
    return f"{len(kinds)} media" if kinds else "no medium"


def _kind_of(uri: object) -> str:
    path = str(uri or "").partition("?")[0].partition("#")[0]
    ending = suffix(path)
    if ending in VIDEOS:
        return "video"
    return "picture" if ending in PICTURES else "medium"


def _labels(kinds: list[str], sizes: Floats) -> list[str]:
    """The kind of each row, with its third by size among the rows of that kind."""
    labels, names = list(kinds), np.array(kinds, dtype=object)
    for kind in set(kinds):
        inside = np.flatnonzero((names == kind) & np.isfinite(sizes))
        low, high = np.quantile(sizes[inside], (1 / 3, 2 / 3)) if inside.size else (0.0, 0.0)
        for place in inside.tolist() if low < high else ():
            size = sizes[place]
            name = "small" if size <= low else "large" if size > high else "medium"
            labels[place] = f"{kind}, {name}"
    return labels


def _rank(label: str) -> int:
    size = label.rpartition(", ")[2]
    return _SIZES.index(size) if size in _SIZES else 0
