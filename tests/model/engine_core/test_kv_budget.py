"""How large the cache is made, and which errors mean that memory was missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mediamill.model.engine import Engine
from mediamill.model.engine_core import kv_budget
from mediamill.model.engine_core.allocation import bytes_per_token
from mediamill.model.tiny import CHECKPOINT

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def engine():
    return Engine.load(CHECKPOINT, device="cpu")


def tokens(engine, batch_size):
    return kv_budget.cache_tokens(engine.model, engine.rules, "sdpa", batch_size, 64, 64)


def test_the_cache_is_at_most_all_contexts_and_half_of_what_is_free(engine, monkeypatch):
    context = engine.model.config.text.context_length
    assert tokens(engine, 2) == 2 * context
    each = bytes_per_token(engine.model.config.text, torch.float32)
    monkeypatch.setattr(kv_budget, "available_memory", lambda: 2 * each * 1000)
    assert tokens(engine, 2) == 1000
    monkeypatch.setattr(kv_budget, "available_memory", lambda: 0)
    assert tokens(engine, 2) == 1


def test_a_cache_takes_no_memory_before_it_is_written():
    """In a process of its own: what an allocator has from earlier is in memory already."""
    code = """
import resource
from pathlib import Path
import torch
from mediamill.model.engine_core.allocation import bytes_per_token, layer_tensors
from mediamill.model.engine import Engine
from mediamill.model.tiny import CHECKPOINT

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

text = Engine.load(CHECKPOINT, "cpu", "float32").model.config.text
before = resident()
made = layer_tensors(text, 64, 4096, torch.bfloat16, torch.device("cpu"))
size = sum(tensor.nbytes for tensor in made)
assert size == 64 * 4096 * bytes_per_token(text, torch.bfloat16) // 2
assert resident() - before < size / 4
assert made[0].dtype == torch.bfloat16
assert made[0][3].abs().max() == 0
assert all(tensor.data_ptr() % 64 == 0 for tensor in made)
made[0].fill_(1)
assert resident() - before > made[0].nbytes / 2
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=200)


def test_what_is_available_is_within_what_there_is():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert total / 1000 < kv_budget.available_memory() <= total


def test_errors_that_mean_missing_memory():
    assert kv_budget.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert kv_budget.out_of_memory(MemoryError())
    assert not kv_budget.out_of_memory(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert kv_budget.out_of_memory(caught.value)
