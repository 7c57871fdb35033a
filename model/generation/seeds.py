"""Turns the seed of a request and the number of a step into one uniform random number.

Counter-based: no state is kept, so that a draw depends neither on what else is in the batch nor on
what was drawn before. It does not know what the numbers are for.
"""

import torch

# Constants of SplitMix64: G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number
# generators", OOPSLA 2014; here as the signed numbers that int64 holds.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def splitmix64(state: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Output number `step` (from 0) of SplitMix64 begun at `state`; both int64, of one shape.

    The result is int64 with the bits of the unsigned number. Source: the article above, figure 17.
    """
    return _mix(state + (step + 1) * _GAMMA)


def uniform(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Random numbers in [0, 1), float64 [B], of seeds int64 [B] at steps int64 [B].

    The seed is hashed before it is counted on from: seeds 0, 1, 2, ... give unrelated sequences.
    """
    bits = splitmix64(_mix(seeds + _GAMMA), steps)
    return _shift(bits, 11).double() * 2.0**-53


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """A shift to the right that brings in zeros; torch's own brings in the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
