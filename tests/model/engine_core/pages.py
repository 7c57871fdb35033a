"""Random paged caches, with NaN wherever no token lies, and what attention over them should be."""

import random

import torch


def paged_case(seed, dtype=torch.float32, device="cpu", *, rows=4, longest=700, sizes=(16, 80)):
    """q, keys, values, block_table, seq_lens and window of `paged_decode`, drawn by `seed`.

    sizes: the least page size and, in steps of 16, what it stays below.
    """
    draw = random.Random(seed)
    batch, kv_heads, groups = draw.randint(1, rows), draw.choice((1, 2, 4)), draw.randint(1, 8)
    dim, page_size = draw.choice((16, 48, 64, 80, 128, 256)), draw.randrange(*sizes, 16)
    lengths = [draw.randint(1, longest) for _ in range(batch)]
    window = draw.choice((None, None, 1, 5, 100, 300))
    pages = [-(-length // page_size) for length in lengths]
    width = max(pages) + draw.randint(0, 3)
    shape = (sum(pages) + 3, page_size, kv_heads, dim)
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.full(shape, torch.nan) for _ in range(2))
    table = torch.zeros(batch, width, dtype=torch.int32)
    # Page 0 belongs to no row: it is what the table holds beyond a row's own pages.
    free = (torch.randperm(shape[0] - 1, generator=generator) + 1).to(torch.int32)
    for row, (length, count) in enumerate(zip(lengths, pages, strict=True)):
        table[row, :count], free = free[:count], free[count:]
        for tensor in (keys, values):
            own = torch.full((count * page_size, kv_heads, dim), torch.nan)
            own[:length] = torch.randn(length, kv_heads, dim, generator=generator)
            tensor[table[row, :count].long()] = own.unflatten(0, (count, page_size))
    q = torch.randn(batch, kv_heads * groups, dim, generator=generator)
    seq_lens = torch.tensor(lengths, dtype=torch.int32)
    tensors = tuple(t.to(device, dtype) for t in (q, keys, values))
    return (*tensors, table.to(device), seq_lens.to(device), window)


def attended(q, keys, values, block_table, seq_lens, window):
    """The formula, one row and one head after the other, in float32 on the CPU."""
    out = torch.empty(q.shape)
    groups = q.shape[1] // keys.shape[2]
    for row, length in enumerate(seq_lens.tolist()):
        used = block_table[row, : -(-length // keys.shape[1])].long()
        first = 0 if window is None else max(0, length - window)
        k, v = (t[used].flatten(0, 1)[first:length].float().cpu() for t in (keys, values))
        for head in range(q.shape[1]):
            scores = k[:, head // groups] @ q[row, head].float().cpu() * q.shape[2] ** -0.5
            out[row, head] = scores.softmax(0) @ v[:, head // groups]
    return out
