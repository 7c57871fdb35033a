"""Attention kernels: windows, grouped heads, decode, and the flash kernel where there is one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.model.layers.attention import (
    CachedCausalAttention,
    CachedDecodeAttention,
    KeyValueCache,
    PackedCausalAttention,
    check_attention,
    packed_attention,
)

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=5)
WINDOWS = st.one_of(st.none(), st.integers(1, 14))


def random_qkv(total, heads=4, groups=2, dim=8, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(total, n, dim, generator=generator).to(**options)
        for n in (heads, heads // groups, heads // groups)
    )


def restated(q, k, v, window):
    """One sequence, one query after the other: softmax(q k / sqrt(d)) v over the visible keys."""
    out = torch.empty_like(q)
    groups = q.shape[1] // k.shape[1]
    for i in range(len(q)):
        first = 0 if window is None else max(0, i - window + 1)
        for head in range(q.shape[1]):
            keys, values = (t[first : i + 1, head // groups] for t in (k, v))
            weights = (keys @ q[i, head] * q.shape[-1] ** -0.5).softmax(0)
            out[i, head] = weights @ values
    return out


@settings(max_examples=25, deadline=None)
@given(LENGTHS, WINDOWS, st.sampled_from([1, 2, 4]), st.sampled_from(["sdpa", "eager"]))
def test_packed_attention_stays_in_its_sequence_and_window(lengths, window, groups, name):
    q, k, v = random_qkv(sum(lengths), groups=groups)
    got = PackedCausalAttention(lengths, name)(0, q, k, v, window)
    parts = zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
    want = torch.cat([restated(*part, window) for part in parts])
    assert torch.allclose(got, want, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), min_size=1, max_size=4),
    WINDOWS,
    st.sampled_from(["sdpa", "eager"]),
)
def test_going_on_in_a_cache_equals_one_pass(rows, window, name):
    lengths = [past + new + 1 for past, new in rows]
    whole = random_qkv(sum(lengths))
    parts = list(zip(*(t.split(lengths) for t in whole), strict=True))
    want = [restated(*part, window) for part in parts]

    def piece(pick):
        return tuple(
            torch.cat([part[i][pick(row)] for part, row in zip(parts, rows, strict=True)])
            for i in range(3)
        )

    cache = KeyValueCache(1, len(rows), 2, 0, 8, torch.float32, CPU)
    past, new = [p for p, _ in rows], [n for _, n in rows]
    cache.reserve(max(past))
    PackedCausalAttention(past, name, cache)(0, *piece(lambda row: slice(0, row[0])), window)
    cache.lengths += torch.tensor(past)
    if any(new):
        cache.reserve(max(p + n for p, n in rows))
        step = CachedCausalAttention(new, past, cache, name)
        got = step(0, *piece(lambda row: slice(row[0], sum(row))), window)
        expected = [w[p : p + n] for w, (p, n) in zip(want, rows, strict=True)]
        assert torch.allclose(got, torch.cat(expected), atol=1e-5)
    cache.lengths += torch.tensor(new)
    cache.reserve(max(lengths))
    decode = CachedDecodeAttention(cache, name)
    assert list(decode.lengths) == [1] * len(rows)
    got = decode(0, *piece(lambda row: slice(sum(row), sum(row) + 1)), window)
    assert torch.allclose(got, torch.stack([w[-1] for w in want]), atol=1e-5)


def test_dropout_drops_its_share_of_the_weights():
    q, k, v = random_qkv(64)
    ones = torch.ones_like(v)
    for name in ("sdpa", "eager"):
        torch.manual_seed(0)
        out = packed_attention(q, k, ones, [64], causal=True, name=name, dropout=0.4)
        assert out.std() > 0.05, "nothing was dropped"
        assert out.mean().item() == pytest.approx(1.0, abs=0.1)
        # Without it every row of weights sums to one.
        assert torch.allclose(PackedCausalAttention([64], name)(0, q, k, ones), torch.ones_like(q))


def test_names_of_attention():
    assert check_attention("sdpa", CPU, torch.float32) == "sdpa"
    assert check_attention("eager", CPU, torch.bfloat16) == "eager"
    for name in ("flash", "flash_attention_2"):
        with pytest.raises(ValueError, match=r"needs an NVIDIA GPU.*is cpu; use 'sdpa' instead"):
            check_attention(name, CPU, torch.bfloat16)
        with pytest.raises(ValueError, match=r"needs float16 or bfloat16.*is float32; use 'sdpa'"):
            check_attention(name, torch.device("cuda"), torch.float32)
    with pytest.raises(ValueError, match="attention is 'flex', expected 'sdpa', 'eager'"):
        check_attention("flex", CPU, torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("window", [None, 7, 64])
@pytest.mark.parametrize("groups", [1, 4])
def test_flash_equals_sdpa(window, groups):
    options = {"device": "cuda", "dtype": torch.bfloat16}
    assert check_attention("flash", torch.device("cuda"), torch.bfloat16) == "flash"
    lengths = [33, 1, 128, 70, 70]
    q, k, v = random_qkv(sum(lengths), heads=8, groups=groups, dim=64, **options)
    wide = [t.float() for t in (q, k, v)]
    exact = PackedCausalAttention(lengths)(0, *wide, window)
    for name in ("flash", "sdpa"):
        assert (PackedCausalAttention(lengths, name)(0, q, k, v, window) - exact).abs().max() < 0.03
    frames = packed_attention(q, k, v, lengths, causal=False, name="flash")
    exact = packed_attention(*wide, lengths, causal=False)
    assert (frames - exact).abs().max() < 0.03
    outs = []
    for name in ("flash", "sdpa"):
        cache = KeyValueCache(1, 5, 8 // groups, 256, 64, torch.bfloat16, torch.device("cuda"))
        PackedCausalAttention(lengths, name, cache)(0, q, k, v, window)
        cache.lengths += torch.tensor(lengths, device="cuda")
        outs.append(CachedDecodeAttention(cache, name)(0, q[:5], k[:5], v[:5], window))
    assert (outs[0] - outs[1]).abs().max() < 0.03
