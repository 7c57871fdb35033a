"""Attention over pages: the copying kernel against the formula, and which kernel is chosen."""

import pytest
import torch

from mediamill.model.engine_core.paged_attention import choose_kernel, paged_decode
from mediamill.model.layers import flash
from tests.model.engine_core.pages import attended, paged_case

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(12))
def test_copied_pages_give_the_formula(seed):
    case = paged_case(seed, longest=200)
    out = paged_decode(*case, "gather")
    assert torch.allclose(out, attended(*case), atol=1e-5)


def test_which_pages_hold_a_row_changes_nothing():
    q, keys, values, table, seq_lens, window = paged_case(3)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(1))
    moved = torch.argsort(order).to(torch.int32)[table.long()]
    out = paged_decode(q, keys[order], values[order], moved, seq_lens, window, "gather")
    assert torch.equal(out, paged_decode(q, keys, values, table, seq_lens, window, "gather"))


def test_the_cpu_copies_pages():
    assert choose_kernel(CPU, torch.float32, 128, 16) == "gather"
    assert choose_kernel(CPU, torch.bfloat16, 128, 256) == "gather"


def documented(*, window=True, largest_page=1024):
    """What the documentation of torch.nn.attention.varlen says of its function, in plain torch."""

    def varlen_attn(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        *,
        window_size=(-1, -1),
        enable_gqa=False,
        seqused_k=None,
        block_table=None,
        num_splits=None,
    ):
        assert cu_seq_q.dtype == block_table.dtype == seqused_k.dtype == torch.int32
        assert cu_seq_q.tolist() == list(range(len(query) + 1))
        assert cu_seq_k is None
        assert max_q == 1
        assert max_k >= int(seqused_k.max())
        assert enable_gqa or query.shape[1] == key.shape[2]
        if key.shape[1] > largest_page:
            raise RuntimeError("the page size is not supported")
        assert window_size == (-1, -1) or window_size[1] == 0
        span = None if window_size[0] < 0 or not window else window_size[0] + 1
        return attended(query, key, value, block_table, seqused_k, span).to(query.dtype)

    return varlen_attn


@pytest.fixture
def pretend(monkeypatch):
    """Let torch's flash kernel seem to be there, being the function that is given."""

    def use(function):
        names = frozenset(function.__kwdefaults__)
        monkeypatch.setattr(flash, "_kernel", lambda: (function, names))
        monkeypatch.setattr(flash, "missing_requirement", lambda device, dtype: None)
        flash.supports_pages.cache_clear()

    yield use
    flash.supports_pages.cache_clear()


def test_torchs_kernel_is_called_as_documented(pretend):
    pretend(documented())
    assert choose_kernel(CPU, torch.bfloat16, 128, 16) == "varlen"
    for seed in range(4):
        case = paged_case(seed, longest=100)
        out = paged_decode(*case, "varlen")
        assert torch.allclose(out, paged_decode(*case, "gather"), atol=1e-5)


def test_torchs_kernel_is_left_where_it_refuses_pages_or_gets_them_wrong(pretend):
    pretend(documented(largest_page=32))
    assert choose_kernel(CPU, torch.bfloat16, 128, 32) == "varlen"
    assert choose_kernel(CPU, torch.bfloat16, 128, 64) == "gather"
    pretend(documented(window=False))
    assert choose_kernel(CPU, torch.bfloat16, 128, 32) == "gather"


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_kernel_of_the_gpu_agrees_with_the_copy(seed, dtype):
    case = paged_case(seed, dtype, "cuda", longest=3000)
    expected = attended(*case)
    kernels = ["gather", "triton"]
    dim, page_size = case[0].shape[2], case[1].shape[1]
    if flash.supports_pages(torch.device("cuda"), dtype, dim, page_size):
        kernels.append("varlen")
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for kernel in kernels:
        out = paged_decode(*case, kernel).float().cpu()
        assert torch.allclose(out, expected, atol=tolerance, rtol=tolerance), kernel
