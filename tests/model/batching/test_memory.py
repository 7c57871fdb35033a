"""How large the cache is made, and which errors mean that memory was missing."""

import ctypes
import os
import resource

import pytest
import torch

from model.batching import memory
from model.batching.room import bytes_per_token, layer_tensors
from model.engine import Engine
from model.tiny import CHECKPOINT


@pytest.fixture(scope="module")
def engine():
    return Engine.load(CHECKPOINT, device="cpu")


def tokens(engine, rows):
    return memory.cache_tokens(engine.model, engine.rules, "sdpa", rows, 64, 64)


def test_the_cache_is_at_most_all_rows_and_half_of_what_is_free(engine, monkeypatch):
    context = engine.model.config.text.context_length
    assert tokens(engine, 2) == 2 * context
    each = bytes_per_token(engine.model.config.text, torch.float32)
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * each * 1000)
    assert tokens(engine, 2) == 1000
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    assert tokens(engine, 2) == 1


def test_a_cache_takes_no_memory_before_it_is_written(engine):
    page = resource.getpagesize()

    def resident(tensor):
        """Bytes of its pages that are in memory; other threads' do not count."""
        first = -(-tensor.data_ptr() // page) * page
        length = (tensor.data_ptr() + tensor.nbytes - first) // page * page
        found = (ctypes.c_ubyte * (length // page))()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(length), found) == 0
        return page * sum(one & 1 for one in found)

    text = engine.model.config.text
    made = layer_tensors(text, 64, 4096, torch.bfloat16, torch.device("cpu"))
    size = sum(tensor.nbytes for tensor in made)
    assert size == 64 * 4096 * bytes_per_token(text, torch.bfloat16) // 2
    assert sum(map(resident, made)) < size / 4
    assert made[0].dtype == torch.bfloat16
    assert made[0][3].abs().max() == 0
    made[0].fill_(1)
    assert resident(made[0]) > made[0].nbytes / 2
    assert all(tensor.data_ptr() % 64 == 0 for tensor in made)


def test_what_is_available_is_within_what_there_is():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert total / 1000 < memory.available_memory() <= total


def test_errors_that_mean_missing_memory():
    assert memory.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert memory.out_of_memory(MemoryError())
    assert not memory.out_of_memory(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.out_of_memory(caught.value)
