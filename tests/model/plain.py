"""The plainest way to what a decode step over a cache must give: one sequence, in float64."""

import torch


def plain_decode(q, keys, values, window=None):
    """Attention of q [H, d] over keys and values [K, Hkv, d], in float64 -> [H, d]."""
    if window is not None:
        keys, values = keys[-window:], values[-window:]
    groups = q.shape[0] // keys.shape[1]
    k, v = (t.double().repeat_interleave(groups, 1) for t in (keys, values))
    scores = torch.einsum("hd,khd->hk", q.double(), k) * q.shape[1] ** -0.5
    return torch.einsum("hk,khd->hd", scores.softmax(-1), v).to(q.dtype)
