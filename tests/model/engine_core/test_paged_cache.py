"""Pages and shelves: what is handed out is handed out once, and what was written is read."""

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
    """Random rows of random beginnings, against a plain account of who holds what."""
    rng = random.Random(0)
    for total in (1, 7, 40):
        pool, rows, named = BlockPool(total), [], {}
        refused = shared = 0
        for _ in range(3000):
            if rows and rng.random() < 0.45:
                pool.release(rows.pop(rng.randrange(len(rows))))
            else:
                chain = [b"%d/%d" % (rng.randrange(4), i) for i in range(rng.randrange(6))]
                known = pool.known(chain)
                mine = pool.share(chain[:known])
                assert mine == [named[name] for name in chain[:known]]
                fresh = pool.take(rng.randrange(5))
                if fresh is None:
                    refused += 1
                    pool.release(mine)
                    continue
                held = {page for row in rows for page in row} | set(mine)
                assert not held & set(fresh)
                assert len(set(fresh)) == len(fresh)
                for page, name in zip(fresh, chain[known:], strict=False):
                    pool.name(page, name)
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
        assert sorted(pool.take(total)) == list(range(total))
        assert pool.take(1) is None


def test_the_page_that_was_idle_longest_goes_first_and_later_pages_before_earlier_ones():
    pool = BlockPool(4)
    for chain in ((b"a1", b"a2"), (b"b1", b"b2")):
        pages = pool.take(2)
        for page, name in zip(pages, chain, strict=True):
            pool.name(page, name)
        pool.release(pages)
    pool.release(pool.share([b"a1", b"a2"]))
    assert pool.idle == 4
    kept = pool.take(1)
    assert (pool.known([b"a1", b"a2"]), pool.known([b"b1", b"b2"])) == (2, 1)
    kept += pool.take(2)
    assert (pool.known([b"a1", b"a2"]), pool.known([b"b1"])) == (1, 0)
    pool.release(kept)
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(kept[:1])


@pytest.mark.parametrize("kind", ["pages of 4", "pages of 16", "shelves"])
def test_random_rows_read_what_they_wrote(kind):
    """Rows come, share beginnings, grow, move and leave; a plain list of tensors is the oracle."""
    rng, draw = random.Random(1), torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(shape, generator=draw)

    if kind == "shelves":
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
            known = cache.pool.known(names)
            room = cache.open(length + more, names[:known])
            if room is None:
                refused += 1
                continue
            room.used = length
            reused += room.reused
            # The keys of a beginning are those of whoever computed it.
            k, v = noise(layers, length, HEADS, DIM), noise(layers, length, HEADS, DIM)
            if room.reused:
                for new, old in zip((k, v), beginnings[names[known - 1]], strict=True):
                    new[:, : room.reused] = old
            writer = cache.writer([(room, room.reused, 0, length - room.reused)])
            for layer in range(layers):
                writer.write(layer, k[layer, room.reused :], v[layer, room.reused :])
            cache.publish(room, names)
            for i in range(known, len(names)):
                end = (i + 1) * cache.page_size
                if cache.pool.known([names[i]]):
                    beginnings[names[i]] = (k[:, :end].clone(), v[:, :end].clone())
            rows.append((room, [k, v]))
        elif action < 0.55 and rows:
            room, _ = rows.pop(rng.randrange(len(rows)))
            cache.close(room)
        elif rows:
            going = [row for row in rows if row[0].used < row[0].tokens]
            rng.shuffle(going)
            going = going[: rng.randrange(1, 12)]
            if not going:
                continue
            rooms = [room for room, _ in going]
            batch = cache.batch(rooms, [room.used + 1 for room in rooms])
            for turn in range(2):
                if any(room.used == room.tokens for room in rooms):
                    break
                if turn:
                    batch.advance()
                k, v = (noise(layers, len(rooms), HEADS, DIM) for _ in range(2))
                for i, (room, stored) in enumerate(going):
                    stored[:] = [
                        torch.cat((old, new[:, i : i + 1]), 1)
                        for old, new in zip(stored, (k, v), strict=True)
                    ]
                    room.used += 1
                attend = batch
                if kind != "shelves":
                    attend = PagedDecode(cache, batch.block_table, batch.filled, batch.slots)
                for layer in range(layers):
                    window = rng.choice([None, 3, 50])
                    q = noise(len(rooms), TEXT.num_attention_heads, DIM)
                    found = attend(layer, q, k[layer], v[layer], window)
                    for i, (_, (keys, values)) in enumerate(going):
                        want = plain_decode(q[i], keys[layer], values[layer], window)
                        assert (found[i] - want).abs().max() < 1e-5
    assert refused > 3
    assert reused > 100
    for room, _ in rows:
        cache.close(room)
    assert cache.pages_in_use == 0


def test_a_nan_that_a_row_leaves_behind_harms_no_other():
    cache = ContiguousCache(TEXT, 2000, 16, torch.float32, CPU)
    for value in (float("nan"), 1.0):
        room = cache.open(60)
        length = 50 if value != 1.0 else 3
        room.used = length
        k = torch.full((length, HEADS, DIM), value)
        for layer in range(TEXT.num_hidden_layers):
            cache.writer([(room, 0, 0, length)]).write(layer, k, k)
        q = torch.ones(1, TEXT.num_attention_heads, DIM)
        other = cache.open(60)
        other.used = 40
        batch = cache.batch([room], [length + 1])
        found = batch(0, q, k[:1], k[:1])
        assert found.isnan().all() == (value != 1.0)
        cache.close(room)
        batch = cache.batch([other], [41])
        assert torch.equal(batch(0, q, k[:1].nan_to_num(1), k[:1].nan_to_num(1)).isnan(), q > 1)
        cache.close(other)


def test_a_shelf_that_is_empty_gives_its_memory_to_another():
    cache = ContiguousCache(TEXT, 1170, 16, torch.float32, CPU)
    assert cache.capacity == 1026
    small = [cache.open(100) for _ in range(4)]
    assert all(small)
    assert cache.open(100) is None
    assert cache.open(600) is None
    for room in small[1:]:
        cache.close(room)
    assert cache.open(600) is None
    cache.close(small[0])
    assert cache.open(1026) is not None
    assert cache.open(1) is None
    assert cache.allocated <= cache.capacity
