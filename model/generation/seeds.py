"""Computes uniform random numbers from the seed of a request and the index of a step.

The generator is counter-based: it has no state, so a number depends neither on the rest of the
batch nor on earlier numbers.
"""

import torch

# Constants of SplitMix64: G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number
# generators", OOPSLA 2014; here as signed int64 numbers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def splitmix64(state: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Returns output number `step` (from 0) of SplitMix64 with initial state `state`.

    Both are int64 of one shape. The result is int64 with the bits of the unsigned number. Source:
    the article above, figure 17.
    """
    return _mix(state + (step + 1) * _GAMMA)


def uniform(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Returns random numbers in [0, 1), float64 [B], for seeds int64 [B] at steps int64 [B].

    The seed is hashed first, so that seeds 0, 1, 2, ... give unrelated sequences.
    """
    bits = splitmix64(_mix(seeds + _GAMMA), steps)
    return _shift(bits, 11).double() * 2.0**-53


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifts to the right, filling with zeros; torch's own operator fills with the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
