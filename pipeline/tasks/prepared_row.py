"""Turns a row of a table of `prepared_schema` into what requests to an engine are made of.

What is asked is not known here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.media.image_rules import ImageRules
from mediamill.pipeline.faults import IdentityError
from mediamill.pipeline.tasks.checksum import checksum, row_name
from mediamill.schemas import columns as c

# Of the same bytes, these tell all that can differ: windows of a video, and rules for its frames.
_SEEN = ("type", "sha256", "height", "width", "frame_indices")


@dataclass(frozen=True)
class PreparedRow:
    """name: what travels with the row's tensors. prompts: token ids of each question, texts: of
    each text to score. media_names: as of `Request`. content: a hash of all that
    decides the answers, 16 bytes, where that is wanted. values: of the columns of its own that were
    asked for.
    """

    name: str
    row_id: object
    prompts: Sequence[Sequence[int]]
    texts: Sequence[Sequence[int]]
    visuals: tuple[VisualInput, ...]
    media_names: tuple[str, ...] | None
    content: bytes
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def visual_tokens(self) -> int:
        return sum(visual.tokens for visual in self.visuals)


def prepared_row(
    table: pa.Table,
    number: int,
    rules: Mapping[VisualKind, ImageRules],
    own: Sequence[str] = (),
    hashed: bool = False,
) -> PreparedRow:
    """rules: that the patches were made by. own: columns whose values are wanted. hashed: whether
    `content` is.

    Raises IdentityError for the tensors of another row.
    """
    columns = (c.ROW, c.SHA256, c.ID, c.INPUT_IDS, c.CONTINUATIONS, c.GRID_THW, c.MEDIA_KINDS)
    row, sha256, row_id, prompts, texts, grid, kinds = (
        table[name][number].as_py() for name in columns
    )
    name = row_name(row, sha256, row_id)
    patches = np.frombuffer(table[c.PATCHES][number].as_buffer(), np.uint8)
    found = checksum(name, prompts, texts, grid, patches)
    expected = table[c.TENSOR_CHECKSUM][number].as_py()
    if found != expected:
        raise IdentityError(
            f"{name}: the tensors are not those that were prepared for this row: found the seal "
            f"{found}, expected {expected}"
        )
    visuals = []
    start = 0
    for medium, kind in enumerate(kinds):
        t, h, w = grid[3 * medium : 3 * medium + 3]
        width = rules[kind].patch_values(kind)
        stop = start + t * h * w * width
        # A copy: the object store's memory is read-only, which torch has no notion of.
        part = torch.from_numpy(patches[start:stop].copy())
        cut = part.reshape(t * h * w, width)
        visuals.append(VisualInput(kind, cut, (t, h, w), rules[kind].merge_size))
        start = stop
    if start != patches.size:
        raise IdentityError(f"{name}: {patches.size} bytes for a grid of {grid}")
    # The hash of a video's file says nothing of which seconds the row shows.
    known = sha256 is not None and kinds == ["image"]
    names = (f"{sha256} {visuals[0].grid_thw}",) if known else None
    values = {column: table[column][number].as_py() for column in own}
    content = _content(prompts, texts, table[c.RECEIPT][number].as_py()) if hashed else b""
    return PreparedRow(name, row_id, prompts, texts, tuple(visuals), names, content, values)


def _content(
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    receipts: Sequence[Mapping[str, Any]] | None,
) -> bytes:
    media = [[one[name] for name in _SEEN] for one in receipts or []]
    words = json.dumps([prompts, texts, media]).encode()
    return hashlib.blake2b(words, digest_size=16).digest()
