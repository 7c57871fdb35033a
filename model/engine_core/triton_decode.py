"""Decode attention over a paged KV cache as two Triton kernels (flash-decoding) for NVIDIA GPUs.

Each sequence is divided into splits that are attended to in parallel; a second kernel combines the
splits by their log-sum-exp (section 3.1 of arXiv 2205.14135). The division depends on the sequence
alone, so its result has the same bits in any batch. Importing this module needs triton, which torch
installs with CUDA.
"""

import torch
import triton
import triton.language as tl

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256

# Tokens of a split; more if a sequence would have more than MAX_SPLITS splits.
SPLIT = 256
MAX_SPLITS = 32


def missing(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Returns why the kernels cannot run, as the end of a sentence; None if they can."""
    if device.type != "cuda":
        return f"they need a GPU, and the device is {device.type}"
    if dtype not in DTYPES:
        return f"they do not support {str(dtype).removeprefix('torch.')}"
    if dtype != torch.float32 and torch.cuda.get_device_capability(device) < (8, 0):
        return "they need a GPU of compute capability 8.0 or later"
    if head_dim % 16 or not 16 <= head_dim <= LARGEST_HEAD:
        return f"they need heads of 16 to {LARGEST_HEAD} in steps of 16, and these have {head_dim}"
    return None


def paged_decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    window: int | None,
    max_seq_len: int,
) -> torch.Tensor:
    """See `mediamill.model.engine_core.paged_attention.paged_decode` for arguments and result.

    There is no device synchronization: the grid follows from `max_seq_len`, and splits beyond the
    end of a sequence do nothing.
    """
    batch, heads, dim = q.shape
    page_size, kv_heads = keys.shape[1:3]
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert block_table.stride(1) == 1
    q = q.contiguous()
    out = torch.empty_like(q)
    visible = max_seq_len if window is None else min(max_seq_len, window)
    splits = min(MAX_SPLITS, triton.cdiv(visible, SPLIT))
    partial = torch.empty(batch, heads, splits, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, heads, splits, dtype=torch.float32, device=q.device)
    padded = triton.next_power_of_2(dim)
    tile = tile_of(dim, q.element_size())
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        _attend_split[(batch, kv_heads, splits)](
            q,
            keys,
            values,
            block_table,
            seq_lens,
            partial,
            lse,
            block_table.stride(0),
            dim**-0.5,
            splits,
            window or 0,
            heads // kv_heads,
            max(16, triton.next_power_of_2(heads // kv_heads)),
            kv_heads,
            dim,
            padded,
            page_size,
            tile,
            SPLIT,
            MAX_SPLITS,
            num_warps=4,
            num_stages=3,
        )
        _combine_splits[(batch, heads)](
            partial,
            lse,
            seq_lens,
            out,
            splits,
            window or 0,
            heads,
            dim,
            padded,
            tile,
            SPLIT,
            MAX_SPLITS,
            num_warps=4,
        )
    return out


def tile_of(dim: int, element_size: int) -> int:
    """Returns the tokens of one tile: its keys and values, with those being prefetched, fit into
    100 KB of shared memory.
    """
    return int(max(16, min(64, 16384 // (triton.next_power_of_2(dim) * element_size))))


@triton.jit
def _split_size(
    seq_lens: tl.tensor,
    window: tl.constexpr,
    tile: tl.constexpr,
    split: tl.constexpr,
    max_splits: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Returns the first token that a sequence attends to, and its tokens per split."""
    first = seq_lens * 0
    if window > 0:
        first = tl.maximum(seq_lens - window, 0)
    share = tl.cdiv(seq_lens - first, max_splits)
    return first, tl.maximum(tl.cdiv(share, tile) * tile, split)


@triton.jit
def _attend_split(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    seq_lens: torch.Tensor,
    partial: torch.Tensor,
    lse: torch.Tensor,
    table_stride: tl.int64,
    scale: float,
    splits: tl.int32,
    window: tl.constexpr,
    groups: tl.constexpr,
    padded_groups: tl.constexpr,
    kv_heads: tl.constexpr,
    dim: tl.constexpr,
    padded_dim: tl.constexpr,
    page_size: tl.constexpr,
    tile: tl.constexpr,
    split: tl.constexpr,
    max_splits: tl.constexpr,
) -> None:
    """One split of one sequence, for the query heads of one key-value head."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    number = tl.program_id(2)
    tokens = tl.load(seq_lens + row)
    first, size = _split_size(tokens, window, tile, split, max_splits)
    begin = first + number * size
    end = tl.minimum(begin + size, tokens)
    if begin < end:
        d = tl.arange(0, padded_dim)
        group = tl.arange(0, padded_groups)
        heads = row * (kv_heads * groups) + kv_head * groups + group
        real = (group[:, None] < groups) & (d[None, :] < dim)
        query = tl.load(q + heads[:, None] * dim + d[None, :], mask=real, other=0.0)
        top = tl.full([padded_groups], float("-inf"), tl.float32)
        total = tl.zeros([padded_groups], tl.float32)
        sum_ = tl.zeros([padded_groups, padded_dim], tl.float32)
        for at in range(begin, end, tile):
            token = at + tl.arange(0, tile)
            seen = token < end
            page = tl.load(table + row * table_stride + token // page_size, mask=seen, other=0)
            slot = page.to(tl.int64) * page_size + token % page_size
            where = (slot * kv_heads + kv_head)[:, None] * dim + d[None, :]
            loadable = seen[:, None] & (d[None, :] < dim)
            key = tl.load(keys + where, mask=loadable, other=0.0)
            # "ieee": float32 in float32, not in tf32.
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            rescale = tl.exp(top - higher)
            value = tl.load(values + where, mask=loadable, other=0.0)
            new = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
            sum_ = sum_ * rescale[:, None] + new
            total = total * rescale + tl.sum(weights, 1)
            top = higher
        place = heads * splits + number
        tl.store(partial + place[:, None] * dim + d[None, :], sum_ / total[:, None], mask=real)
        tl.store(lse + place, top + tl.log(total), mask=group < groups)


@triton.jit
def _combine_splits(
    partial: torch.Tensor,
    lse: torch.Tensor,
    seq_lens: torch.Tensor,
    out: torch.Tensor,
    splits: tl.int32,
    window: tl.constexpr,
    heads: tl.constexpr,
    dim: tl.constexpr,
    padded_dim: tl.constexpr,
    tile: tl.constexpr,
    split: tl.constexpr,
    max_splits: tl.constexpr,
) -> None:
    """Combines the splits of one query head of one sequence, in a fixed order."""
    row = tl.program_id(0).to(tl.int64)
    head = row * heads + tl.program_id(1)
    tokens = tl.load(seq_lens + row)
    first, size = _split_size(tokens, window, tile, split, max_splits)
    used = tl.cdiv(tokens - first, size)
    number = tl.arange(0, max_splits)
    top = tl.max(tl.load(lse + head * splits + number, mask=number < used, other=float("-inf")), 0)
    d = tl.arange(0, padded_dim)
    total = 0.0
    sum_ = tl.zeros([padded_dim], tl.float32)
    for i in range(used):
        place = head * splits + i
        weight = tl.exp(tl.load(lse + place) - top)
        sum_ += weight * tl.load(partial + place * dim + d, mask=d < dim, other=0.0)
        total += weight
    tl.store(out + head * dim + d, (sum_ / total).to(out.dtype.element_ty), mask=d < dim)  # type: ignore[attr-defined]
