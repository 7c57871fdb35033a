"""Turns what a decoding process says of one row into values that are safe to store, or refuses it.

The process has had media of strangers in its memory: what it says is held against every bound that
is known here. How it was asked is not known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from mediamill.model.media.limit_names import LimitName
from mediamill.pipeline.decoding.probe import Failure, Measured
from mediamill.pipeline.records import RowFailure
from mediamill.schemas.errors import ErrorCode

_ID_BYTES = 4
_NOTHING = memoryview(b"")
_FAILURES = frozenset(
    (
        ErrorCode.DECODE_CORRUPT,
        ErrorCode.DECODE_UNSUPPORTED,
        ErrorCode.DECODE_TOO_LARGE,
        ErrorCode.MEDIA_EMPTY,
        ErrorCode.PROMPT_INVALID,
        ErrorCode.CONTEXT_TOO_LONG,
    )
)

Kind = Literal["image", "video"]
_Size = Annotated[int, Field(ge=1, lt=2**31)]
_Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Tokens = Annotated[int, Field(ge=0, lt=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Shape(_Strict):
    """What the patches of one kind are: bytes of one, pixels of its side, patches of a token's."""

    patch_bytes: _Size
    patch_size: _Size
    merge_size: _Size


class Receipt(_Strict):
    """As mediamill.model.processor.Receipt."""

    kind: Kind
    sha256: _Sha256
    height: _Size
    width: _Size
    frame_times_s: list[float]
    frame_indices: list[Annotated[int, Field(ge=0, lt=2**63)]]
    visual_tokens: _Tokens
    source_height: _Size
    source_width: _Size
    notes: list[str]
    bound_by: list[LimitName]
    seen_sha256: _Sha256 | None


class Visual(_Strict):
    """The grid of one medium, in patches; its patches lie in the row's."""

    kind: Kind
    grid_thw: tuple[_Size, _Size, _Size]


class _Told(_Strict):
    receipts: list[Receipt]
    visuals: list[Visual]
    ids: list[_Tokens]
    failure: Failure | None
    data_bytes: Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class DecodeReply:
    """What is known of one row.

    patches: uint8, those of all media one after the other. ids: int32 [length], of each chat, then
    of each text.
    failure: then there are no visuals, patches and ids; receipts, if the media could be decoded.
    data_bytes: of memory that the process holds. measured: where that was asked instead.
    """

    receipts: Sequence[Receipt] = ()
    visuals: Sequence[Visual] = ()
    patches: memoryview = _NOTHING
    ids: Sequence[npt.NDArray[np.int32]] = ()
    failure: RowFailure | None = None
    data_bytes: int = 0
    measured: Measured | None = None


def checked(
    header: bytes,
    room: Callable[[int], npt.NDArray[np.uint8]],
    read_into: Callable[[npt.NDArray[np.uint8]], None],
    most: int,
    wanted: Sequence[Kind | None],
    prompts: int,
    shapes: Mapping[str, Shape],
) -> DecodeReply:
    """The answer that a header makes, and the bytes that come with it.

    room: uint8 of a size, for patches. read_into: copies the next bytes to where who has sent them
    cannot change them. most: bytes that there are. wanted: of each medium of the row, its kind, if
    that was asked for. prompts: chats and texts, of which there are to be ids.
    Raises ValueError for what no sound process says.
    """
    told = _Told.model_validate_json(header)
    receipts, visuals, failure = told.receipts, told.visuals, told.failure
    if failure is not None:
        if failure.code not in _FAILURES or visuals or told.ids:
            raise ValueError(f"found the error {failure.code} together with patches, or at all")
        if receipts:
            _check_kinds(receipts, wanted)
        found = RowFailure(failure.code.value, failure.message)
        return DecodeReply(receipts, failure=found, data_bytes=told.data_bytes)
    _check_kinds(receipts, wanted)
    size = sum(
        _patch_bytes(visual, receipt, shapes[visual.kind])
        for visual, receipt in zip(visuals, receipts, strict=True)
    )
    if len(told.ids) != prompts:
        raise ValueError(f"found the ids of {len(told.ids)} texts, expected {prompts}")
    count = sum(told.ids)
    if size + count * _ID_BYTES > most:
        raise ValueError(f"found {size} bytes of patches and {count} ids, expected {most} bytes")
    patches, flat = room(size), np.empty(count, np.int32)
    read_into(patches)
    read_into(flat.view(np.uint8))
    if flat.size and flat.min() < 0:
        raise ValueError(f"found the token id {flat.min()}, expected none below 0")
    ids = np.split(flat, np.cumsum(told.ids)[:-1]) if told.ids else []
    return DecodeReply(receipts, visuals, patches.data, ids, None, told.data_bytes)


def _check_kinds(receipts: Sequence[Receipt], wanted: Sequence[Kind | None]) -> None:
    for receipt, kind in zip(receipts, wanted, strict=True):
        if kind not in (None, receipt.kind):
            raise ValueError(f"found the receipt of a {receipt.kind}, expected one of a {kind}")
        if len(receipt.frame_times_s) not in (0, len(receipt.frame_indices)):
            raise ValueError("found times of some frames, expected those of all or none")


def _patch_bytes(visual: Visual, receipt: Receipt, shape: Shape) -> int:
    """Of one medium, whose grid has to be that of its receipt."""
    t, h, w = visual.grid_thw
    seen = (visual.kind, h * shape.patch_size, w * shape.patch_size)
    if seen != (receipt.kind, receipt.height, receipt.width):
        raise ValueError(f"found a grid of {visual.grid_thw} with another medium's receipt")
    if visual.kind == "image" and t != 1:
        raise ValueError(f"found a picture with {t} layers of patches, expected 1")
    if receipt.visual_tokens != t * h * w // shape.merge_size**2:
        raise ValueError(f"found {receipt.visual_tokens} visual tokens for {visual.grid_thw}")
    return t * h * w * shape.patch_bytes
