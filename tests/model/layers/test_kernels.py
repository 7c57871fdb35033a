"""Attention by two products, against the formula in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.model.layers import kernels
from mediamill.model.layers.kernels import attention, dense_decode, packed_attention


def drawn(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 4),
    heads=st.integers(1, 3),
    queries=st.integers(1, 40),
    causal=st.booleans(),
    scores=st.sampled_from([1, 100, 1 << 20]),
    masked=st.sampled_from([None, "all", "one", "rows"]),
    seed=st.integers(0, 99),
)
def test_it_is_the_formula(batch, groups, heads, queries, causal, scores, masked, seed):
    keys = queries if causal else queries + seed % 7
    q, k, v = drawn(
        seed,
        (batch, queries, heads * groups, 16),
        (batch, keys, heads, 16),
        (batch, keys, heads, 16),
    )
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    mask = None
    if masked:
        rows = queries if masked == "all" else 1
        mask = torch.rand(1 if masked == "one" else batch, 1, rows, keys) < 0.7
        mask[..., 0] = True
    before, kernels.SCORES = kernels.SCORES, scores
    try:
        got = attention(q, k, v, causal=causal, mask=mask, name="products")
    finally:
        kernels.SCORES = before
    want = attention(q.double(), k.double(), v.double(), causal=causal, mask=mask, name="eager")
    assert (got - want).abs().max() < 2e-5


@pytest.mark.parametrize("window", [None, 1, 5])
def test_packed_sequences_with_windows(window):
    lengths = [7, 7, 1, 12]
    q, k, v = drawn(1, (27, 4, 8), (27, 2, 8), (27, 2, 8))
    got, want = (
        packed_attention(q, k, v, lengths, causal=True, name=name, window=window)
        for name in ("products", "sdpa")
    )
    assert (got - want).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["sdpa", "products"])
@pytest.mark.parametrize("span", [12, 20])
def test_a_decode_step_reads_each_rows_visible_keys(name, span):
    q, keys, values = drawn(2, (5, 6, 8), (5, 3, 20, 8), (5, 3, 20, 8))
    filled = torch.tensor([1, 12, 7, 3, 9])
    visible = (torch.arange(span) < filled[:, None])[:, None, None]
    mask = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
    got = dense_decode(q, keys[:, :, :span], values[:, :, :span], mask, name)
    for row, count in enumerate(filled.tolist()):
        k, v = (t[row : row + 1, :, :count].double() for t in (keys, values))
        want = attention(q[row : row + 1, :, None].double(), k, v, causal=False, name="eager")
        assert (got[row] - want[0, :, 0]).abs().max() < 1e-5
    free = dense_decode(q, keys, values, None, name)
    want = attention(q[:, :, None], keys, values, causal=False, name="eager")[:, :, 0]
    assert (free - want).abs().max() < 1e-5
