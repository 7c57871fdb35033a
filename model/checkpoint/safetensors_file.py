"""Turns the header of a safetensors file into checked descriptions of its tensors.

The layout (github.com/huggingface/safetensors): eight bytes, little-endian, with the length of a
JSON header; the header, which names each tensor's dtype, shape and bytes; the bytes. A header is
trusted in nothing. The values of tensors are read elsewhere.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8}
SIZES |= {"U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8}
SIZES |= dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1)

_LONGEST_HEADER = 100_000_000  # bytes, by the format
_FIRST_READ = 256 * 1024  # most headers are shorter, and take one request
_LONGEST_ENTRY = 4096  # characters that describe one tensor; bounds what JSON may unfold to
_MOST_DIMENSIONS = 16
_MOST_TENSORS = 100_000  # of one file
_BLANKS = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. dtype: as the format spells it. start, stop: its bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(folder: Folder, file: str) -> list[StoredTensor]:
    """The tensors of a file, in the order of their bytes.

    Raises ModelError, naming the file and the tensor, unless the header is what the format demands:
    known dtypes, sizes that are shape times dtype, bytes in one run without holes or overlaps up to
    the end of the file, and no name twice.
    """
    where = folder.path(file)
    size = folder.size(file)
    if size is None:
        raise ModelError(f"{where}: found no such file, expected weights")
    head = folder.read_range(file, 0, min(size, _FIRST_READ))
    length = int.from_bytes(head[:8], "little")
    if size < 8 or length > _LONGEST_HEADER or length > size - 8:
        raise ModelError(
            f"{where} is not a whole safetensors file: it has {size} bytes and announces a header "
            f"of {length}, expected at most {min(_LONGEST_HEADER, max(size - 8, 0))}"
        )
    if len(head) < 8 + length:
        head += folder.read_range(file, len(head), 8 + length)
    try:
        text = str(memoryview(head)[8 : 8 + length], "utf-8")
        tensors = [_tensor(name, entry, 8 + length) for name, entry in _entries(text)]
        _check_layout(tensors, 8 + length, size)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is not a readable safetensors file: {error}") from None
    return sorted(tensors, key=lambda one: (one.start, one.stop))


def named(name: str) -> str:
    """A tensor's name for messages, whatever it holds."""
    return name if name.isprintable() and len(name) <= 200 else f"{name!r:.200}"


def _entries(text: str) -> Iterator[tuple[str, object]]:
    """The members of the header but its metadata, read one by one. Raises ValueError."""
    if not text.startswith("{"):
        raise ValueError("its header does not begin with '{'")
    seen: set[str] = set()
    at = _skip(text, 1)
    while text[at : at + 1] != "}":
        at = _expect(text, at, ",") if seen else at
        name, at = _text(text, at)
        if name in seen or len(seen) == _MOST_TENSORS:
            raise ValueError(
                f"its header describes {named(name)} twice"
                if name in seen
                else f"its header describes more than {_MOST_TENSORS} tensors"
            )
        seen.add(name)
        at = _expect(text, at, ":")
        if name == "__metadata__":
            at = _skip_metadata(text, at)
        else:
            part = text[at : at + _LONGEST_ENTRY]
            try:
                value, length = _JSON.raw_decode(part)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{named(name)} is described by {part:.80}, expected an object with dtype, "
                    f"shape and data_offsets ({error})"
                ) from None
            at += length
            yield name, value
        at = _skip(text, at)
    if _skip(text, at + 1) != len(text):
        raise ValueError("its header goes on after the end of the JSON object")


def _skip_metadata(text: str, at: int) -> int:
    """Past an object of texts, which nobody here needs: one text after the other."""
    at, first = _expect(text, at, "{"), True
    while text[at : at + 1] != "}":
        at = at if first else _expect(text, at, ",")
        _, at = _text(text, at)
        _, at = _text(text, _expect(text, at, ":"))
        at, first = _skip(text, at), False
    return at + 1


def _text(text: str, at: int) -> tuple[str, int]:
    """A JSON text, and where it ends."""
    if text[at : at + 1] != '"':
        raise ValueError(f"its header has {text[at : at + 20]!r}, expected a text")
    value, end = _JSON.raw_decode(text, at)
    return str(value), end


def _unique(members: list[tuple[str, object]]) -> dict[str, object]:
    if len(found := dict(members)) != len(members):
        raise ValueError("a key is there twice")
    return found


def _skip(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    return found.end() if found else at


def _expect(text: str, at: int, sign: str) -> int:
    """Past blanks, `sign` and more blanks."""
    at = _skip(text, at)
    if not text.startswith(sign, at):
        raise ValueError(f"its header has {text[at : at + 20]!r}, expected '{sign}'")
    return _skip(text, at + len(sign))


_JSON = json.JSONDecoder(object_pairs_hook=_unique)


def _tensor(name: str, entry: object, data: int) -> StoredTensor:
    """One entry, checked. data: where in the file the bytes of tensors begin."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(
            f"{named(name)} is described by {entry!s:.80}, expected an object with dtype, shape "
            "and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise ValueError(f"{named(name)} has the dtype {dtype!r:.80}, which is not known")
    if not _are_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(
            f"{named(name)} has the shape {shape!r:.80}, expected integers of at least 0"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(
            f"{named(name)} has the data_offsets {offsets!r:.80}, expected its first byte and its "
            "end"
        )
    begin, end = offsets
    if math.prod(shape) * SIZES[dtype] != end - begin:
        raise ValueError(
            f"{named(name)} has {end - begin:.6g} bytes, expected {math.prod(shape):.6g} values of "
            f"{SIZES[dtype]} bytes"
        )
    return StoredTensor(name, dtype, tuple(shape), data + begin, data + end)


def _are_sizes(value: object) -> bool:
    # bool is an int to Python; nothing is larger than 2**63 bytes.
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**63 for one in value)


def _check_layout(tensors: Sequence[StoredTensor], data: int, size: int) -> None:
    at = data
    for tensor in sorted(tensors, key=lambda one: (one.start, one.stop)):
        if tensor.start != at:
            raise ValueError(
                f"{named(tensor.name)} begins at byte {tensor.start - data} of the data, expected "
                f"{at - data}, where the one before it ends"
            )
        at = tensor.stop
    if at != size:
        raise ValueError(f"its tensors end at byte {at}, and the file at byte {size}")
