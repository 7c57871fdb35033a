"""Rotary frequencies for every type of rope scaling.

Sources: position interpolation (arXiv 2306.15595, "linear"), NTK-aware scaling ("dynamic"), YaRN
(arXiv 2309.00071), LongRoPE (arXiv 2402.13753) and Llama 3.1's rule ("llama3").
"""

import math
from collections.abc import Sequence

import torch

from mediamill.model.checkpoint.rope_scaling import RopeScaling


def inverse_frequencies(dim: int, theta: float) -> torch.Tensor:
    """theta^(-2i/dim) for i < dim/2: float32 [dim/2]."""
    return 1.0 / _powers(dim, theta)


def _powers(dim: int, theta: float) -> torch.Tensor:
    return theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def scaled_frequencies(rope: RopeScaling, dim: int, theta: float, context: int) -> torch.Tensor:
    """The frequencies of a module: float32 [dim/2], or [2, dim/2] for longrope (short, long).

    context: max_position_embeddings. The frequencies for "dynamic" are those of a sequence that
        fits it.
    """
    plain = inverse_frequencies(dim, theta)
    if rope.kind == "linear":
        return plain / _factor(rope, context)
    if rope.kind == "yarn":
        return _yarn(rope, dim, theta, context)
    if rope.kind == "llama3":
        return _llama3(rope, plain, _factor(rope, context))
    if rope.kind == "longrope":
        divisors = torch.tensor([rope.short_factor, rope.long_factor], dtype=torch.float32)
        return 1.0 / (divisors * _powers(dim, theta))
    return plain


def attention_scaling(rope: RopeScaling, context: int) -> float:
    """Returns the number by which cosine and sine are multiplied."""
    if rope.kind not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    factor = _factor(rope, context)
    if rope.kind == "longrope":
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(_original(rope)))
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(factor, rope.mscale) / _mscale(factor, rope.mscale_all_dim)
    return _mscale(factor, 1.0)


def frequencies_by_length(
    rope: RopeScaling, frequencies: torch.Tensor, longest: torch.Tensor, theta: float, context: int
) -> torch.Tensor:
    """The frequencies of each token: float32 [T, dim/2]. Never synchronizes with the device.

    frequencies: from `scaled_frequencies`, on the device of `longest`.
    longest: int64 [T], the length of each token's sequence.
    """
    if rope.kind == "longrope":
        short, long = frequencies
        return torch.where((longest > _original(rope))[:, None], long, short)
    dim, factor = 2 * frequencies.shape[-1], _factor(rope, context)
    # Within the context the frequencies are exact; the formula would only approximate them.
    growth = (factor * longest / context - (factor - 1)).clamp(min=1.0)
    base = theta * growth ** (dim / (dim - 2))
    powers = torch.arange(0, dim, 2, device=longest.device, dtype=torch.float32) / dim
    return torch.where((longest > context)[:, None], 1.0 / base[:, None] ** powers, frequencies)


def sequence_lengths(positions: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """1 + the largest position of the sequence of each token: int64 [T].

    positions: int64 [axes, T] of packed sequences with `lengths` tokens each.
    """
    highest = positions.amax(0)
    if all(length == 1 for length in lengths):
        return highest + 1
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    sequence = sequence.to(positions.device)
    largest = torch.zeros(len(lengths), dtype=highest.dtype, device=highest.device)
    return largest.scatter_reduce(0, sequence, highest, "amax")[sequence] + 1


def _yarn(rope: RopeScaling, dim: int, theta: float, context: int) -> torch.Tensor:
    """Interpolates slow frequencies, keeps fast ones, and blends those between (section 3.2)."""

    def boundary(rotations: float) -> float:
        turns = _original(rope) / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(theta))

    low, high = boundary(rope.beta_fast), boundary(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    powers = _powers(dim, theta)
    ramp = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    interpolated = 1.0 / (_factor(rope, context) * powers)
    return interpolated * (1 - ramp) + 1.0 / powers * ramp


def _llama3(rope: RopeScaling, plain: torch.Tensor, factor: float) -> torch.Tensor:
    original = _original(rope)
    low, high = rope.low_freq_factor, rope.high_freq_factor
    wavelength = 2 * math.pi / plain
    scaled = torch.where(wavelength > original / low, plain / factor, plain)
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * scaled / factor + smooth * scaled
    is_between = (wavelength >= original / high) & (wavelength <= original / low)
    return torch.where(is_between, between, scaled)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _factor(rope: RopeScaling, context: int) -> float:
    return context / _original(rope) if rope.factor is None else rope.factor


def _original(rope: RopeScaling) -> int:
    assert rope.original is not None, "checked when the configuration was read"
    return rope.original
