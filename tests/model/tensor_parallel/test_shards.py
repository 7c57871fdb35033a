"""Parts of a network: together they are the whole, and each rank reads its own."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.safetensors_file import TensorCopy, read_blocks, read_header
from mediamill.model.checkpoint.tensor_slice import TensorSlice
from mediamill.model.errors import ModelError
from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.layers.collectives import Collectives
from mediamill.model.layers.shapes import TextConfig, VisionConfig
from mediamill.model.layers.shards import Shard, balance

BIG = Qwen2VLConfig(
    TextConfig(hidden_size=8192, num_attention_heads=64, num_key_value_heads=8),
    VisionConfig(hidden_size=8192),
)


def config(heads, kept, inner=64):
    text = TextConfig(
        vocab_size=521,
        hidden_size=heads * 8,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kept,
        mrope_section=(2, 1, 1),
    )
    return Qwen2VLConfig(
        text, VisionConfig(depth=1, embed_dim=32, num_heads=4, hidden_size=heads * 8)
    )


@pytest.mark.parametrize(("heads", "kept", "size"), [(12, 2, 2), (12, 2, 4), (28, 4, 4), (8, 8, 4)])
def test_the_parts_of_each_tensor_are_all_of_it(heads, kept, size):
    whole = config(heads, kept)
    with torch.device("meta"):
        names = {name: p.shape for name, p in Qwen2VL(whole).named_parameters()}
        networks = [
            dict(Qwen2VL(whole, Shard(rank, size)).named_parameters()) for rank in range(size)
        ]
    split = 0
    for name, shape in names.items():
        parts = [Shard(rank, size).tensor_slice(name, whole.text) for rank in range(size)]
        for part, network in zip(parts, networks, strict=True):
            mine = network[name].shape
            if part is None:
                assert mine == shape
            else:
                # The last rank's part of the vocabulary may have rows that nothing fills.
                room = mine[part.dim]
                assert room == part.stop - part.start or (
                    ("embed" in name or "head" in name) and room > part.stop - part.start
                )
        if None in parts:
            assert all(part is None for part in parts)
            continue
        split += 1
        covered = sorted({i for part in parts for i in range(part.start, part.stop)})
        assert covered == list(range(shape[parts[0].dim])), name
    assert split >= 8


@given(sizes=st.lists(st.integers(1, 10_000), max_size=40), ranks=st.integers(1, 8))
def test_shares_are_even(sizes, ranks):
    owners = balance(sizes, ranks)
    loads = [sum(s for s, o in zip(sizes, owners, strict=True) if o == r) for r in range(ranks)]
    assert sum(loads) == sum(sizes)
    # Greedy by size: no rank has more than another by more than the largest piece.
    assert max(loads) - min(loads) <= max(sizes, default=0)


@pytest.mark.parametrize(
    ("heads", "kept", "size", "words"),
    [
        (12, 2, 8, "num_attention_heads 12"),
        (24, 6, 4, "num_key_value_heads 6"),
        (9, 3, 2, "heads 9"),
    ],
)
def test_a_network_that_does_not_fall_into_so_many_parts_is_refused(heads, kept, size, words):
    with pytest.raises(ModelError, match=words):
        Shard(0, size).check(config(heads, kept).text)


def test_the_published_shapes_fall_into_the_usual_numbers_of_parts():
    for heads, kept, inner, sizes in (
        (12, 2, 8960, (1, 2, 4)),
        (28, 4, 18944, (1, 2, 4)),
        (64, 8, 29568, (1, 2, 4, 8)),
    ):
        for size in sizes:
            Shard(0, size).check(config(heads, kept, inner).text)
            Shard(size - 1, size).check(config(heads, kept, inner).text)
    # Of 72B over eight GPUs each rank has 8 heads and one key-value head.
    part = Shard(3, 8).text(BIG.text)
    assert (part.num_attention_heads, part.num_key_value_heads, part.head_dim) == (8, 1, 128)


@pytest.mark.parametrize("block_bytes", [1, 10_000, 64 * 1024 * 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_is_read_as_it_would_be_cut(tmp_path, monkeypatch, block_bytes, dtype):
    monkeypatch.setattr("mediamill.model.checkpoint.safetensors_file._MAPPED_BYTES", block_bytes)
    values = torch.randn(300, 90, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"w": values}, tmp_path / "w.safetensors")
    folder = Folder.of(tmp_path)
    [stored] = read_header(folder, "w.safetensors")
    rows = torch.full((120, 90), 7.0, dtype=dtype)
    columns = torch.full((300, 17), 7.0)
    nothing = torch.full((300, 90), 7.0)
    copies = [
        TensorCopy(stored, rows, TensorSlice(0, 170, 280)),
        TensorCopy(stored, columns, TensorSlice(1, 60, 77)),
        TensorCopy(stored, nothing, TensorSlice(0, 310, 300)),
    ]
    for block, target in read_blocks(folder, "w.safetensors", copies):
        target.copy_(block)
    assert torch.equal(rows[:110], values[170:280])
    assert not rows[110:].any()
    assert torch.equal(columns, values[:, 60:77].float())
    assert not nothing.any()


def mapped_bytes():
    """Bytes of mapped files that were read into memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssFile:")[2].split()[0]) * 1024


def test_a_rank_reads_no_rows_but_its_own(tmp_path):
    save_file({"w": torch.zeros(64, 256 * 1024)}, tmp_path / "w.safetensors")
    folder = Folder.of(tmp_path)
    [stored] = read_header(folder, "w.safetensors")
    rows = TensorCopy(stored, torch.zeros(4, 256 * 1024), TensorSlice(0, 8, 12))
    before = mapped_bytes()
    for block, target in read_blocks(folder, "w.safetensors", [rows]):
        target.copy_(block)
        assert 4_000_000 < mapped_bytes() - before < 8_000_000  # of 67 million


def test_ranks_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="rank is 2"):
        Collectives(2, 2)
    with pytest.raises(ValueError, match="need a group"):
        Collectives(0, 2)
