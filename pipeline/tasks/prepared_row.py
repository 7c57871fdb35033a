"""Reads a row of a table of `prepared_schema`, from which requests to the engine are made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.media.image_rules import ImageRules
from mediamill.pipeline.faults import IdentityError
from mediamill.pipeline.tasks.checksum import checksum, row_name
from mediamill.schemas import columns as c

# The fields of a receipt that decide what the model sees: the file, its frames and their size.
_IDENTITY_FIELDS = ("type", "sha256", "height", "width", "frame_indices")


@dataclass(frozen=True)
class PreparedRow:
    """The inputs of one row.

    name: identifies the row, see checksum.row_name.
    prompts, texts: token ids of each question, and of each text to score.
    media_names: see `Request`.
    content_hash: of all that decides the answers, 16 bytes; empty if it was not requested.
    values: of the requested columns, by column name.
    """

    name: str
    row_id: object
    prompts: Sequence[Sequence[int]]
    texts: Sequence[Sequence[int]]
    visuals: tuple[VisualInput, ...]
    media_names: tuple[str, ...] | None
    content_hash: bytes
    values: Mapping[str, Any] = field(default_factory=dict)


def prepared_row(
    table: pa.Table,
    number: int,
    rules: Mapping[VisualKind, ImageRules],
    value_columns: Sequence[str] = (),
    with_content_hash: bool = False,
) -> PreparedRow:
    """The row of this number in the table, with the values of `value_columns`.

    rules: those that made the patches.
    Raises IdentityError when the tensors are those of another row.
    """
    columns = (c.ROW, c.SHA256, c.ID, c.INPUT_IDS, c.CONTINUATIONS, c.GRID_THW, c.MEDIA_KINDS)
    row, sha256, row_id, prompts, texts, grid, kinds = (
        table[name][number].as_py() for name in columns
    )
    name = row_name(row, sha256, row_id)
    patches = np.frombuffer(table[c.PATCHES][number].as_buffer(), np.uint8)
    actual = checksum(name, prompts, texts, grid, patches)
    expected = table[c.TENSOR_CHECKSUM][number].as_py()
    if actual != expected:
        raise IdentityError(
            f"{name}: the tensors are not those that were prepared for this row: found the "
            f"checksum {actual}, expected {expected}"
        )
    visuals = _visuals(name, kinds, grid, patches, rules)
    # A file's hash does not tell which seconds of a video the row shows.
    is_image = sha256 is not None and kinds == ["image"]
    media_names = (f"{sha256} {visuals[0].grid_thw}",) if is_image else None
    values = {column: table[column][number].as_py() for column in value_columns}
    content_hash = b""
    if with_content_hash:
        content_hash = _content_hash(prompts, texts, table[c.RECEIPT][number].as_py())
    return PreparedRow(name, row_id, prompts, texts, visuals, media_names, content_hash, values)


def _visuals(
    name: str,
    kinds: Sequence[VisualKind],
    grid: Sequence[int],
    patches: npt.NDArray[np.uint8],
    rules: Mapping[VisualKind, ImageRules],
) -> tuple[VisualInput, ...]:
    """The media of a row. Raises IdentityError for patches that are not of these grids."""
    visuals = []
    start = 0
    for medium, kind in enumerate(kinds):
        t, h, w = grid[3 * medium : 3 * medium + 3]
        width = rules[kind].patch_values(kind)
        stop = start + t * h * w * width
        # A copy: the object store's memory is read-only, which torch does not support.
        values = torch.from_numpy(patches[start:stop].copy()).reshape(t * h * w, width)
        visuals.append(VisualInput(kind, values, (t, h, w), rules[kind].merge_size))
        start = stop
    if start != patches.size:
        raise IdentityError(f"{name}: {patches.size} bytes for a grid of {grid}")
    return tuple(visuals)


def _content_hash(
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    receipts: Sequence[Mapping[str, Any]] | None,
) -> bytes:
    media = [[receipt[name] for name in _IDENTITY_FIELDS] for receipt in receipts or []]
    content = json.dumps([prompts, texts, media]).encode()
    return hashlib.blake2b(content, digest_size=16).digest()
