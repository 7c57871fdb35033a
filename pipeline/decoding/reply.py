"""Validates what a decode worker replies about one row.

The worker has parsed untrusted media, so every field of its reply is checked against its bounds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mediamill.model.inputs import VisualKind
from mediamill.model.media.receipt import Receipt
from mediamill.pipeline.decoding.probe import ProbeResult
from mediamill.pipeline.records import RowFailure
from mediamill.schemas.errors import ErrorCode

_ID_BYTES = 4
_NO_PATCHES = memoryview(b"")
_PROBE_FAILURES = {
    ErrorCode.DECODE_CORRUPT,
    ErrorCode.DECODE_UNSUPPORTED,
    ErrorCode.DECODE_TOO_LARGE,
    ErrorCode.MEDIA_EMPTY,
}
_FAILURES = _PROBE_FAILURES | {ErrorCode.PROMPT_INVALID, ErrorCode.CONTEXT_TOO_LONG}

_INT32, _INT64 = 2**31, 2**63
_SHA256 = re.compile(r"[0-9a-f]{64}")
_Size = Annotated[int, Field(ge=1, lt=_INT32)]
_Tokens = Annotated[int, Field(ge=0, lt=_INT32)]


class _Strict(BaseModel):
    # Holds for the standard dataclasses in the fields, too: Receipt and RowFailure.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PatchShape(_Strict):
    """The patches of one kind of media: bytes of a patch, its side in pixels, and how many patches
    in a row become one visual token.
    """

    patch_bytes: _Size
    patch_size: _Size
    merge_size: _Size


class VisualGrid(_Strict):
    """The fields of a VisualInput beside its patches."""

    kind: VisualKind
    grid_thw: tuple[_Size, _Size, _Size]


class _Header(_Strict):
    failure: RowFailure | None
    data_bytes: Annotated[int, Field(ge=0, lt=_INT64)]


class _DecodeHeader(_Header):
    receipts: tuple[Receipt, ...]
    visuals: tuple[VisualGrid, ...]
    ids: tuple[_Tokens, ...]


class _ProbeHeader(_Header):
    probe: ProbeResult | None


@dataclass(frozen=True)
class DecodeReply:
    """The result of decoding one row.

    receipts: one per medium; if the row failed, only if all media could be decoded.
    visuals: one per medium; none if the row failed.
    patches: uint8, those of all media one after the other.
    ids: int32 [length], of each chat, then of each text of the request.
    data_bytes: memory that the worker holds.
    probe: the result, if the request was a probe.
    """

    receipts: Sequence[Receipt] = ()
    visuals: Sequence[VisualGrid] = ()
    patches: memoryview = _NO_PATCHES
    ids: Sequence[npt.NDArray[np.int32]] = ()
    failure: RowFailure | None = None
    data_bytes: int = 0
    probe: ProbeResult | None = None


def parse_reply(
    header: bytes,
    allocate: Callable[[int], npt.NDArray[np.uint8]],
    read_into: Callable[[npt.NDArray[np.uint8]], None],
    max_data_bytes: int,
    kinds: Sequence[VisualKind | None],
    texts: int,
    shapes: Mapping[str, PatchShape],
) -> DecodeReply:
    """Validates the reply about a row, and reads the data that come with it.

    header: JSON.
    allocate: returns an array for the patches, uint8 [size].
    read_into: copies the next data of the reply to where the worker cannot change them.
    max_data_bytes: that the reply can have.
    kinds: of each medium of the row, None where the request left it open.
    texts: number of chats and texts whose token ids were requested.
    shapes: by kind of medium.
    Raises ValueError for a reply that no correct worker sends.
    """
    reply = _DecodeHeader.model_validate_json(header)
    receipts, visuals, failure = reply.receipts, reply.visuals, reply.failure
    if failure is not None:
        if failure.code not in _FAILURES or visuals or reply.ids:
            raise ValueError(f"found an unknown error or one with patches: {failure.code}")
        if receipts:
            _check_receipts(receipts, kinds)
        return DecodeReply(receipts, failure=failure, data_bytes=reply.data_bytes)
    _check_receipts(receipts, kinds)
    size = sum(
        _patch_bytes(visual, receipt, shapes[visual.kind])
        for visual, receipt in zip(visuals, receipts, strict=True)
    )
    if len(reply.ids) != texts:
        raise ValueError(f"found the ids of {len(reply.ids)} texts, expected {texts}")
    count = sum(reply.ids)
    if size + count * _ID_BYTES > max_data_bytes:
        raise ValueError(
            f"found {size} bytes of patches and {count} ids, expected {max_data_bytes} bytes"
        )
    patches, all_ids = allocate(size), np.empty(count, np.int32)
    read_into(patches)
    read_into(all_ids.view(np.uint8))
    if all_ids.size and all_ids.min() < 0:
        raise ValueError(f"found the token id {all_ids.min()}, expected none below 0")
    ids = np.split(all_ids, np.cumsum(reply.ids)[:-1]) if reply.ids else []
    return DecodeReply(receipts, visuals, patches.data, ids, None, reply.data_bytes)


def parse_probe_reply(header: bytes) -> DecodeReply:
    """Validates the reply to a probe. Raises ValueError for one that no correct worker sends."""
    reply = _ProbeHeader.model_validate_json(header)
    if (reply.probe is None) == (reply.failure is None):
        raise ValueError("found both a result and a failure, or neither, expected one")
    if reply.failure is not None and reply.failure.code not in _PROBE_FAILURES:
        raise ValueError(f"found the error {reply.failure.code} of a probe")
    if reply.probe is not None:
        cuts, duration_s = reply.probe.cuts, reply.probe.duration_s
        if not all(before < after for before, after in pairwise([0.0, *cuts])):
            raise ValueError("found cuts that do not ascend from above 0")
        if cuts and cuts[-1] > duration_s:
            raise ValueError(f"found a cut behind the end at {duration_s} s")
    return DecodeReply(failure=reply.failure, data_bytes=reply.data_bytes, probe=reply.probe)


def _check_receipts(receipts: Sequence[Receipt], kinds: Sequence[VisualKind | None]) -> None:
    """Raises ValueError for values out of their bounds; pydantic has checked the types."""
    for receipt, kind in zip(receipts, kinds, strict=True):
        if kind not in (None, receipt.kind):
            raise ValueError(f"found the receipt of a {receipt.kind}, expected one of a {kind}")
        sizes = (receipt.height, receipt.width, receipt.source_height, receipt.source_width)
        if not (1 <= min(sizes) <= max(sizes) < _INT32 and 0 <= receipt.visual_tokens < _INT32):
            raise ValueError(f"found sizes of {sizes} and {receipt.visual_tokens} visual tokens")
        for digest in (receipt.sha256, receipt.seen_sha256):
            if digest is not None and not _SHA256.fullmatch(digest):
                raise ValueError(f"found the hash {digest[:80]!r}, expected 64 hex digits")
        indices = receipt.frame_indices
        if indices and not 0 <= min(indices) <= max(indices) < _INT64:
            raise ValueError(f"found frames from {min(indices)} to {max(indices)}")
        if len(receipt.frame_times_s) not in (0, len(indices)):
            raise ValueError("found the times of some frames, expected those of all or none")


def _patch_bytes(visual: VisualGrid, receipt: Receipt, shape: PatchShape) -> int:
    """Bytes of one medium's patches. Raises ValueError for a grid that contradicts the receipt."""
    t, h, w = visual.grid_thw
    described = (visual.kind, h * shape.patch_size, w * shape.patch_size)
    if described != (receipt.kind, receipt.height, receipt.width):
        raise ValueError(f"found a grid of {visual.grid_thw} with another medium's receipt")
    if visual.kind == "image" and t != 1:
        raise ValueError(f"found a picture with {t} layers of patches, expected 1")
    if receipt.visual_tokens != t * h * w // shape.merge_size**2:
        raise ValueError(f"found {receipt.visual_tokens} visual tokens for {visual.grid_thw}")
    return t * h * w * shape.patch_bytes
