"""Turns sound media into broken ones, each from a seed: chance, lies in headers, joined files."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.hostile.samples import Sample
from tests.hostile.structure import Part, parts, with_right_sums

_NUMBERS = (0, 1, 2, 3, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000)
_HUGE = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0, 0x40000000, 0x01000000, 1 << 63, 1 << 40)


@dataclass(frozen=True)
class Mutant:
    """A broken file: number `seed` of those that begin from `sample`, changed in these ways."""

    seed: int
    sample: Sample
    ways: tuple[str, ...]
    data: bytes

    def __str__(self) -> str:
        return f"{self.seed} ({self.sample.name}: {', '.join(self.ways)})"


def mutant(seed: int, samples: Sequence[Sample]) -> Mutant:
    """The same one for the same seed and samples."""
    rng = random.Random(seed)
    sample = samples[seed % len(samples)]
    data, ways = sample.data, []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.choices(_WAYS, _WEIGHTS)[0]
        ways.append(way.__name__.strip("_"))
        data = way(data, rng)
    if rng.random() < 0.05:
        ways.append("joined")
        other = rng.choice(samples).data
        data = data[: rng.randrange(len(data) + 1)] + other if rng.random() < 0.5 else data + other
    if rng.random() < 0.7:
        data = with_right_sums(data)
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


def _lying_number(data: bytes, rng: random.Random) -> bytes:
    """A number somewhere, mostly near the beginning."""
    if not data:
        return data
    at = rng.randrange(min(len(data), rng.choice((64, 1000, len(data)))))
    return _with_number(data, at, rng.choice((1, 2, 4, 8)), rng.random() < 0.5, rng)


def _lying_size(data: bytes, rng: random.Random) -> bytes:
    part = _part(data, rng)
    if part is None:
        return _lying_number(data, rng)
    return _with_number(data, part.size_at, part.size_bytes, part.big, rng)


def _lying_field(data: bytes, rng: random.Random) -> bytes:
    part = _part(data, rng)
    if part is None or part.body >= part.end:
        return _lying_number(data, rng)
    at = rng.randrange(part.body, min(part.end, part.body + 64))
    return _with_number(data, at, rng.choice((1, 2, 4, 4, 8)), part.big, rng)


def _part_repeated(data: bytes, rng: random.Random) -> bytes:
    part = _part(data, rng)
    if part is None:
        return _repeated(data, rng)
    copies = rng.choice((1, 2, 50))
    return data[: part.end] + data[part.start : part.end] * copies + data[part.end :]


def _part_removed(data: bytes, rng: random.Random) -> bytes:
    part = _part(data, rng)
    return _removed(data, rng) if part is None else data[: part.start] + data[part.end :]


def _parts_swapped(data: bytes, rng: random.Random) -> bytes:
    one, other = _part(data, rng), _part(data, rng)
    if one is None or other is None or one.end > other.start:
        return _overwritten(data, rng)
    between = data[one.end : other.start]
    first, second = data[one.start : one.end], data[other.start : other.end]
    return data[: one.start] + second + between + first + data[other.end :]


_WAYS = (
    _truncated,
    _flipped,
    _flipped_head,
    _overwritten,
    _repeated,
    _removed,
    _inserted,
    _lying_number,
    _lying_size,
    _lying_field,
    _part_repeated,
    _part_removed,
    _parts_swapped,
)
_WEIGHTS = (2, 3, 3, 1, 1, 1, 1, 4, 4, 8, 2, 1, 1)


def _range(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 16, 256, 4096)))


def _part(data: bytes, rng: random.Random) -> Part | None:
    found = parts(data)
    return rng.choice(found) if found else None


def _with_number(data: bytes, at: int, size: int, big: bool, rng: random.Random) -> bytes:
    order = "big" if big else "little"
    here = int.from_bytes(data[at : at + size], order)
    value = rng.choice(
        (
            rng.choice(_NUMBERS),
            rng.choice(_HUGE),
            rng.getrandbits(8 * size),
            here + rng.choice((-1, 1, 7)),
            here * 2,
        )
    )
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, order) + data[at + size :]
