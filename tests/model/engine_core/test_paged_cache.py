"""Both KV caches: no page or slot is allocated twice, and what was written is read."""

import random

import pytest
import torch

from mediamill.model.engine_core.block_hash import block_hashes
from mediamill.model.engine_core.block_pool import BlockPool
from mediamill.model.engine_core.contiguous_cache import ContiguousCache
from mediamill.model.engine_core.paged_cache import PagedCache, PagedDecode
from mediamill.model.families.qwen2_vl.config import config_from_dict
from mediamill.model.tiny.folder import config_dict
from tests.model.plain import plain_decode

TEXT = config_from_dict(config_dict(), "test").text
HEADS, DIM = TEXT.num_key_value_heads, TEXT.head_dim
CPU = torch.device("cpu")


def test_no_page_is_given_twice_and_none_is_lost():
    """Random sequences with random prefixes, against a plain list of the pages of each."""
    rng = random.Random(0)
    for total in (1, 7, 40):
        pool, rows, named = BlockPool(total), [], {}
        refused = shared = 0
        for _ in range(3000):
            if rows and rng.random() < 0.45:
                pool.release(rows.pop(rng.randrange(len(rows))))
            else:
                chain = [b"%d/%d" % (rng.randrange(4), i) for i in range(rng.randrange(6))]
                known = pool.count_cached(chain)
                mine = pool.share(chain[:known])
                assert mine == [named[name] for name in chain[:known]]
                fresh = pool.allocate(rng.randrange(5))
                if fresh is None:
                    refused += 1
                    pool.release(mine)
                    continue
                held = {page for row in rows for page in row} | set(mine)
                assert not held & set(fresh)
                assert len(set(fresh)) == len(fresh)
                for page, name in zip(fresh, chain[known:], strict=False):
                    pool.set_hash(page, name)
                    (named[name],) = pool.share([name])
                    pool.release([named[name]])
                shared += known
                rows.append(mine + fresh)
            held = {page for row in rows for page in row}
            assert pool.in_use == len(held)
            assert pool.available == total - len(held)
        for row in rows:
            pool.release(row)
        assert pool.available == total
        assert refused
        assert shared or total == 1
        assert sorted(pool.allocate(total)) == list(range(total))
        assert pool.allocate(1) is None


def test_the_page_that_was_idle_longest_goes_first_and_later_pages_before_earlier_ones():
    pool = BlockPool(4)
    for chain in ((b"a1", b"a2"), (b"b1", b"b2")):
        pages = pool.allocate(2)
        for page, name in zip(pages, chain, strict=True):
            pool.set_hash(page, name)
        pool.release(pages)
    pool.release(pool.share([b"a1", b"a2"]))
    assert len(pool._idle) == 4
    kept = pool.allocate(1)
    assert (pool.count_cached([b"a1", b"a2"]), pool.count_cached([b"b1", b"b2"])) == (2, 1)
    kept += pool.allocate(2)
    assert (pool.count_cached([b"a1", b"a2"]), pool.count_cached([b"b1"])) == (1, 0)
    pool.release(kept)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(kept[:1])


@pytest.mark.parametrize("kind", ["pages of 4", "pages of 16", "size classes"])
def test_random_sequences_read_what_they_wrote(kind):
    """Sequences join, share prefixes, grow, move and leave; plain tensors are the oracle."""
    rng, draw = random.Random(1), torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(shape, generator=draw)

    if kind == "size classes":
        cache = ContiguousCache(TEXT, 4000, 16, torch.float32, CPU)
    else:
        cache = PagedCache(TEXT, 900, int(kind[9:]), torch.float32, CPU)
    layers = TEXT.num_hidden_layers
    beginnings = {}
    rows, refused, reused = [], 0, 0
    for _ in range(150):
        action = rng.random()
        if action < 0.35:
            length, more = rng.randrange(1, 120), rng.randrange(1, 200)
            ids = [rng.randrange(2)] * length
            names = block_hashes(ids, [], cache.page_size)
            known = cache.pool.count_cached(names)
            allocation = cache.allocate(length + more, names[:known])
            if allocation is None:
                refused += 1
                continue
            allocation.used = length
            reused += allocation.reused
            # The keys of a shared prefix are those of the sequence that computed it.
            k, v = noise(layers, length, HEADS, DIM), noise(layers, length, HEADS, DIM)
            if allocation.reused:
                for new, old in zip((k, v), beginnings[names[known - 1]], strict=True):
                    new[:, : allocation.reused] = old
            writer = cache.writer([(allocation, allocation.reused, 0, length - allocation.reused)])
            for layer in range(layers):
                writer.write(layer, k[layer, allocation.reused :], v[layer, allocation.reused :])
            cache.publish(allocation, names)
            for i in range(known, len(names)):
                end = (i + 1) * cache.page_size
                if cache.pool.count_cached([names[i]]):
                    beginnings[names[i]] = (k[:, :end].clone(), v[:, :end].clone())
            rows.append((allocation, [k, v]))
        elif action < 0.55 and rows:
            allocation, _ = rows.pop(rng.randrange(len(rows)))
            cache.free(allocation)
        elif rows:
            going = [row for row in rows if row[0].used < row[0].tokens]
            rng.shuffle(going)
            going = going[: rng.randrange(1, 12)]
            if not going:
                continue
            allocations = [allocation for allocation, _ in going]
            batch = cache.batch(allocations, [allocation.used + 1 for allocation in allocations])
            for turn in range(2):
                if any(allocation.used == allocation.tokens for allocation in allocations):
                    break
                if turn:
                    batch.advance()
                k, v = (noise(layers, len(allocations), HEADS, DIM) for _ in range(2))
                for i, (allocation, stored) in enumerate(going):
                    stored[:] = [
                        torch.cat((old, new[:, i : i + 1]), 1)
                        for old, new in zip(stored, (k, v), strict=True)
                    ]
                    allocation.used += 1
                attend = batch
                if kind != "size classes":
                    attend = PagedDecode(cache, batch.block_table, batch.seq_lens, batch.slots)
                for layer in range(layers):
                    window = rng.choice([None, 3, 50])
                    q = noise(len(allocations), TEXT.num_attention_heads, DIM)
                    found = attend(layer, q, k[layer], v[layer], window)
                    for i, (_, (keys, values)) in enumerate(going):
                        want = plain_decode(q[i], keys[layer], values[layer], window)
                        assert (found[i] - want).abs().max() < 1e-5
    assert refused > 3
    assert reused > 100
    for allocation, _ in rows:
        cache.free(allocation)
    assert cache.pages_in_use == 0


def test_a_nan_that_a_sequence_leaves_behind_harms_no_other():
    cache = ContiguousCache(TEXT, 2000, 16, torch.float32, CPU)
    for value in (float("nan"), 1.0):
        allocation = cache.allocate(60)
        length = 50 if value != 1.0 else 3
        allocation.used = length
        k = torch.full((length, HEADS, DIM), value)
        for layer in range(TEXT.num_hidden_layers):
            cache.writer([(allocation, 0, 0, length)]).write(layer, k, k)
        q = torch.ones(1, TEXT.num_attention_heads, DIM)
        other = cache.allocate(60)
        other.used = 40
        batch = cache.batch([allocation], [length + 1])
        found = batch(0, q, k[:1], k[:1])
        assert found.isnan().all() == (value != 1.0)
        cache.free(allocation)
        batch = cache.batch([other], [41])
        assert torch.equal(batch(0, q, k[:1].nan_to_num(1), k[:1].nan_to_num(1)).isnan(), q > 1)
        cache.free(other)


def test_an_empty_size_class_gives_its_memory_to_another():
    cache = ContiguousCache(TEXT, 1170, 16, torch.float32, CPU)
    assert cache.capacity == 1026
    small = [cache.allocate(100) for _ in range(4)]
    assert all(small)
    assert cache.allocate(100) is None
    assert cache.allocate(600) is None
    for allocation in small[1:]:
        cache.free(allocation)
    assert cache.allocate(600) is None
    cache.free(small[0])
    assert cache.allocate(1026) is not None
    assert cache.allocate(1) is None
    assert cache.allocated <= cache.capacity
