"""What is known of a row before its media are fetched: their size, and the length of its texts."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from mediamill.pipeline.fetching.media_uris import scheme
from mediamill.pipeline.forecast.estimates import Floats
from mediamill.schemas import columns as c
from mediamill.schemas.job import VideoConfig


def cheap_sizes(table: pa.Table, video: VideoConfig, base: str) -> tuple[Floats, str | None]:
    """Returns a size of each row's media that costs nothing to know, or NaN; and its name.

    From the columns of `mediamill manifest --probe`, else the bytes of local files.
    """
    names = table.column_names
    if "source_width" in names and "source_height" in names:
        sizes = _floats(table, "source_width") * _floats(table, "source_height")
        if "source_duration_s" in names:
            seconds = np.nan_to_num(_floats(table, "source_duration_s"))
            frames = seconds * (video.fps or 0.0)
            if video.num_frames is not None:
                frames = np.where(seconds > 0, video.num_frames, 0)
            sizes = sizes * np.clip(frames, 1, video.max_frames)
        return sizes, "width, height and duration in the manifest"
    for name in ("source_bytes", "bytes", "size"):
        if name in names and pa.types.is_integer(table.schema.field(name).type):
            return _floats(table, name), f"column '{name}'"
    if c.MEDIA_BYTES in names:
        held = table[c.MEDIA_BYTES]
        held_bytes = [sum(len(d.as_buffer()) for d in row if d.is_valid) if row.is_valid else np.nan
                 for row in held]  # fmt: skip
        return np.array(held_bytes, np.float64), "bytes in the manifest"
    if c.URI in names:
        addresses = [[address] for address in table[c.URI].to_pylist()]
    else:
        media = table[c.MEDIA].to_pylist()
        addresses = [[(one or {}).get(c.MEDIA_URI) for one in row or ()] for row in media]
    sizes = np.array([_file_bytes(row, base) for row in addresses], np.float64)
    if not np.isfinite(sizes).any():
        return np.full(table.num_rows, np.nan), None
    return sizes, "bytes of the files"


def _file_bytes(addresses: Sequence[str | None], base: str) -> float:
    size = 0.0
    for address in addresses:
        if not address or scheme(address) != "file":
            return float("nan")
        path = unquote(address.removeprefix("file://")) if "://" in address else address
        try:
            size += (Path(base) / path).stat().st_size
        except (OSError, ValueError):
            return float("nan")
    return size


def _floats(table: pa.Table, name: str) -> Floats:
    column = table[name].cast(pa.float64(), safe=False).to_numpy()
    return np.asarray(column, np.float64)


def text_lengths(table: pa.Table) -> Floats:
    """Returns the characters of the prompts that each row has of its own."""
    lengths = np.zeros(table.num_rows)
    for name in (c.PROMPT, c.SYSTEM, c.MESSAGES):
        if name in table.column_names:
            lengths += np.array([len(str(text or "")) for text in table[name].to_pylist()])
    return lengths
