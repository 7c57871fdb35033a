"""Mutates valid media files by a seed: random bytes, wrong sizes and fields, joined files."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.hostile.samples import Sample
from tests.hostile.structure import Chunk, chunks_of, with_valid_checksums

_NUMBERS = (0, 1, 2, 3, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000)
_HUGE = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0, 0x40000000, 0x01000000, 1 << 63, 1 << 40)


@dataclass(frozen=True)
class Mutant:
    """A file that was made from `sample` by the mutations in `ways`, with this seed."""

    seed: int
    sample: Sample
    ways: tuple[str, ...]
    data: bytes

    def __str__(self) -> str:
        return f"{self.seed} ({self.sample.name}: {', '.join(self.ways)})"


def mutant(seed: int, samples: Sequence[Sample]) -> Mutant:
    """Returns the mutant of a seed; the same seed and samples give the same file."""
    rng = random.Random(seed)
    sample = samples[seed % len(samples)]
    data, ways = sample.data, []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.choices(_WAYS, _WEIGHTS)[0]
        ways.append(way.__name__.strip("_"))
        data = way(data, rng)
    if rng.random() < 0.05:
        ways.append("joined")
        end = rng.choice(samples).data
        data = data[: rng.randrange(len(data) + 1)] + end if rng.random() < 0.5 else data + end
    if rng.random() < 0.7:
        data = with_valid_checksums(data)
    return Mutant(seed, sample, tuple(ways), data)


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flipped_head(data: bytes, rng: random.Random) -> bytes:
    return _flipped(data[:200], rng) + data[200:]


def _overwritten(data: bytes, rng: random.Random) -> bytes:
    start, end = _range(data, rng)
    fill = rng.choice((b"\0", b"\xff", b"\xaa"))
    return data[:start] + fill * (end - start) + data[end:]


def _repeated(data: bytes, rng: random.Random) -> bytes:
    start, end = _range(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 3, 20)) + data[end:]


def _removed(data: bytes, rng: random.Random) -> bytes:
    start, end = _range(data, rng)
    return data[:start] + data[end:]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 4, 100))) + data[at:]


def _wrong_number(data: bytes, rng: random.Random) -> bytes:
    """Overwrites a number at a random offset, mostly near the beginning."""
    if not data:
        return data
    at = rng.randrange(min(len(data), rng.choice((64, 1000, len(data)))))
    return _with_number(data, at, rng.choice((1, 2, 4, 8)), rng.random() < 0.5, rng)


def _wrong_size(data: bytes, rng: random.Random) -> bytes:
    chunk = _random_chunk(data, rng)
    if chunk is None:
        return _wrong_number(data, rng)
    return _with_number(data, chunk.size_offset, chunk.size_bytes, chunk.big_endian, rng)


def _wrong_field(data: bytes, rng: random.Random) -> bytes:
    chunk = _random_chunk(data, rng)
    if chunk is None or chunk.body >= chunk.end:
        return _wrong_number(data, rng)
    at = rng.randrange(chunk.body, min(chunk.end, chunk.body + 64))
    return _with_number(data, at, rng.choice((1, 2, 4, 4, 8)), chunk.big_endian, rng)


def _chunk_repeated(data: bytes, rng: random.Random) -> bytes:
    chunk = _random_chunk(data, rng)
    if chunk is None:
        return _repeated(data, rng)
    copies = rng.choice((1, 2, 50))
    return data[: chunk.end] + data[chunk.start : chunk.end] * copies + data[chunk.end :]


def _chunk_removed(data: bytes, rng: random.Random) -> bytes:
    chunk = _random_chunk(data, rng)
    return _removed(data, rng) if chunk is None else data[: chunk.start] + data[chunk.end :]


def _chunks_swapped(data: bytes, rng: random.Random) -> bytes:
    first, second = _random_chunk(data, rng), _random_chunk(data, rng)
    if first is None or second is None or first.end > second.start:
        return _overwritten(data, rng)
    between = data[first.end : second.start]
    first_bytes, second_bytes = data[first.start : first.end], data[second.start : second.end]
    return data[: first.start] + second_bytes + between + first_bytes + data[second.end :]


_WAYS = (
    _truncated,
    _flipped,
    _flipped_head,
    _overwritten,
    _repeated,
    _removed,
    _inserted,
    _wrong_number,
    _wrong_size,
    _wrong_field,
    _chunk_repeated,
    _chunk_removed,
    _chunks_swapped,
)
_WEIGHTS = (2, 3, 3, 1, 1, 1, 1, 4, 4, 8, 2, 1, 1)


def _range(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 16, 256, 4096)))


def _random_chunk(data: bytes, rng: random.Random) -> Chunk | None:
    chunks = chunks_of(data)
    return rng.choice(chunks) if chunks else None


def _with_number(data: bytes, at: int, size: int, big_endian: bool, rng: random.Random) -> bytes:
    order = "big" if big_endian else "little"
    number = int.from_bytes(data[at : at + size], order)
    value = rng.choice(
        (
            rng.choice(_NUMBERS),
            rng.choice(_HUGE),
            rng.getrandbits(8 * size),
            number + rng.choice((-1, 1, 7)),
            number * 2,
        )
    )
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, order) + data[at + size :]
