"""CUDA graphs of decode steps: padding and buffers with any function, capture on a GPU."""

import logging
import random
from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mediamill.model.engine import Engine, Request
from mediamill.model.engine_core.cuda_graphs import (
    DecodeGraphs,
    DecodeInputs,
    batch_sizes,
    padded_width,
)
from mediamill.model.engine_core.paged_attention import paged_decode
from mediamill.model.engine_core.paged_cache import PagedDecode
from mediamill.model.families.initialize import initialize_weights
from mediamill.model.families.qwen2_vl.config import load_config
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.sampling import Sampling
from tests.checkpoints import SHAPES, write_checkpoint

CPU = torch.device("cpu")
PAGES, PAGE, WIDTH, ROWS = 60, 4, 7, 20


def test_sizes_of_batches():
    assert batch_sizes(1) == (1,)
    assert batch_sizes(20) == (1, 2, 4, 8, 16, 20)
    assert batch_sizes(100) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100)
    for largest in range(1, 600):
        sizes = batch_sizes(largest)
        assert sizes[-1] == largest
        assert list(sizes) == sorted(set(sizes))
        assert all(b <= 2 * a for a, b in pairwise(sizes))


def test_widths_double():
    assert [padded_width(n, 4, 50) for n in (1, 4, 5, 9, 33, 50)] == [4, 4, 8, 16, 50, 50]


class Toy:
    """One layer over pages, and the batches that it saw."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(32, 2 * 8, generator=generator)
        self.head = torch.randn(4 * 8, 11, generator=generator)
        self.keys, self.values = (torch.full((PAGES + 1, PAGE, 2, 8), torch.nan) for _ in range(2))
        self.shapes = []

    def __call__(self, inputs):
        tokens, positions, block_table, seq_lens, slots = inputs
        self.shapes.append(tuple(block_table.shape))
        new = self.embedding[tokens].unflatten(1, (2, 8)) + positions[:, None, None] / 10
        self.keys.flatten(0, 1)[slots] = new
        self.values.flatten(0, 1)[slots] = -new
        q = new.repeat_interleave(2, 1) * 0.7
        out = paged_decode(q, self.keys, self.values, block_table, seq_lens, None, "gather")
        return out.flatten(1) @ self.head


def batches(seed, steps=40):
    """Rows that come, grow token by token and go, as a running batch does."""
    draw = random.Random(seed)
    free, rows = list(range(PAGES)), []
    for _ in range(steps):
        for row in [row for row in rows if row["seq_lens"] == WIDTH * PAGE or draw.random() < 0.2]:
            free += row["pages"]
            rows.remove(row)
        while len(rows) < ROWS and len(free) >= WIDTH and draw.random() < 0.7:
            rows.append({"pages": [free.pop() for _ in range(WIDTH)], "seq_lens": 0})
        if not rows:
            continue
        for row in rows:
            row["seq_lens"] += 1
        width = -(-max(row["seq_lens"] for row in rows) // PAGE)
        lasts = [row["seq_lens"] - 1 for row in rows]
        yield DecodeInputs(
            torch.tensor([draw.randrange(32) for _ in rows]),
            torch.tensor(lasts),
            torch.tensor([row["pages"][:width] for row in rows], dtype=torch.int32),
            torch.tensor([row["seq_lens"] for row in rows], dtype=torch.int32),
            torch.tensor(
                [
                    row["pages"][last // PAGE] * PAGE + last % PAGE
                    for row, last in zip(rows, lasts, strict=True)
                ]
            ),
        )


def graphs_of(step, capture, device=CPU):
    return DecodeGraphs(
        step,
        device,
        max_batch_size=ROWS,
        max_pages=WIDTH,
        scratch_page=PAGES,
        page_size=PAGE,
        capture=capture,
    )


@pytest.mark.parametrize("seed", range(4))
def test_padded_batches_give_what_the_step_gives(seed):
    plain, padded, captures = Toy(), Toy(), []

    def capture(run):
        captures.append(run)
        run()  # as the warm-up does: doing a step twice must change nothing
        return run

    graphs = graphs_of(padded, capture)
    rows = set()
    for batch in batches(seed):
        rows.add(len(batch[0]))
        assert torch.allclose(graphs(batch), plain(batch), atol=1e-5)
        # Padding wrote to no page but the scratch page.
        for ours, theirs in ((padded.keys, plain.keys), (padded.values, plain.values)):
            assert torch.equal(ours[:PAGES].nan_to_num(9.0), theirs[:PAGES].nan_to_num(9.0))
    sizes = batch_sizes(ROWS)
    assert {size for size, _ in graphs.captured} == {next(s for s in sizes if s >= n) for n in rows}
    assert set(padded.shapes) == set(graphs.captured)
    assert len(captures) == len(graphs.captured)


def test_every_size_can_be_captured_before_any_sequence_comes():
    toy = Toy()
    graphs = graphs_of(toy, lambda run: run)
    graphs.capture_all(WIDTH)
    assert graphs.captured == [(size, WIDTH) for size in batch_sizes(ROWS)]
    assert toy.keys[:PAGES].isnan().all()
    plain = Toy()
    for batch in batches(9):
        assert torch.allclose(graphs(batch), plain(batch), atol=1e-5)


def test_where_capture_fails_steps_run_as_they_are(caplog):
    plain, padded, tries = Toy(), Toy(), []

    def capture(run):
        tries.append(run)
        if len(tries) == 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return run

    graphs = graphs_of(padded, capture)
    with caplog.at_level(logging.WARNING):
        for batch in batches(1):
            assert torch.allclose(graphs(batch), plain(batch), atol=1e-5)
    assert len(tries) == 2
    assert len(caplog.records) == 1
    assert "not permitted when stream is capturing" in caplog.text
    assert graphs.captured == []


def test_a_batch_that_was_not_announced_is_refused():
    graphs = graphs_of(Toy(), lambda run: run)
    zeros = torch.zeros(ROWS + 1, dtype=torch.int64)
    table = torch.zeros(ROWS + 1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="21 rows of 1 pages, and the graphs are for 20 of 7"):
        graphs(DecodeInputs(zeros, zeros, table, zeros.int(), zeros))


class Pages:
    """The part of a cache that `PagedDecode` needs."""

    def __init__(self, config, kernel, device, dtype):
        shape = (PAGES + 1, PAGE, config.num_key_value_heads, config.head_dim)
        self.keys, self.values = (
            [
                torch.zeros(shape, device=device, dtype=dtype)
                for _ in range(config.num_hidden_layers)
            ]
            for _ in range(2)
        )
        self.kernel = kernel


def network_step(model, cache):
    def step(inputs):
        attend = PagedDecode(cache, *inputs[2:])
        embeddings = model.model.embed_tokens(inputs.tokens)
        positions = inputs.positions.expand(3, -1)
        return model.logits(model.hidden_states(embeddings, positions, attend))

    return step


def network(tmp_path, shape, device="cpu", dtype=torch.float32):
    config = load_config(write_checkpoint(tmp_path, SHAPES[shape]))
    model = Qwen2VL(config).eval().to(device, dtype)
    model.model.reset_frequencies(torch.device(device))
    return initialize_weights(model)


@pytest.mark.parametrize("shape", ["embedded", "sliding window", "yarn"])
def test_a_step_of_the_network_never_asks_the_device(shape, tmp_path):
    model = network(tmp_path, shape)
    batch = next(b for b in batches(2) if len(b[0]) > 3)
    # Fake tensors have no values: whatever needs one on the host raises.
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        cache = Pages(model.config.text, "gather", "cpu", torch.float32)
        fake = DecodeInputs(*(mode.from_tensor(t) for t in batch))
        logits = network_step(model, cache)(fake)
    assert logits.shape == (len(batch[0]), model.config.text.vocab_size)


def test_the_engine_says_the_same_through_padded_steps(tmp_path):
    folder = write_checkpoint(tmp_path, SHAPES["embedded"])
    answers = []
    for padded in (False, True):
        engine = Engine.load(folder, device="cpu", batch_rows=3, page_size=4, cache_tokens=600)
        if padded:
            cache = engine._core.cache
            graphs = DecodeGraphs(
                engine.model_runner.plain_decode_step,
                CPU,
                max_batch_size=3,
                max_pages=cache.pages,
                scratch_page=cache.scratch_page,
                page_size=cache.page_size,
                capture=lambda run: run,
            )
            engine.model_runner.decode_step = graphs
        requests = [
            Request(str(n), [5 + n] * (3 + 4 * n), (), Sampling(max_new_tokens=4 + 3 * n))
            for n in range(7)
        ]
        answers.append({one.id: one.output_ids for one in engine.generate(requests)})
    assert answers[0] == answers[1]
    assert len(graphs.captured) > 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["embedded", "2B's heads", "sliding window", "yarn"])
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [("triton", torch.bfloat16), ("triton", torch.float32), ("gather", torch.bfloat16)],
)
def test_graphs_give_the_steps_bits(shape, kernel, dtype, tmp_path):
    model = network(tmp_path, shape, "cuda", dtype)
    steps, batch_of = [], {}
    with torch.inference_mode():
        for _ in range(2):
            cache = Pages(model.config.text, kernel, "cuda", dtype)
            steps.append(network_step(model, cache))
        graphs = graphs_of(steps[1], None, torch.device("cuda"))
        for batch in batches(3, steps=120):
            there = DecodeInputs(*(tensor.cuda() for tensor in batch))
            there.tokens.remainder_(model.config.text.vocab_size)
            # Matrix products of other sizes round differently, so both sides have the padding.
            size = next(s for s in batch_sizes(ROWS) if s >= len(batch[0]))
            if len(batch[0]) == size:
                batch_of[size] = batch_of.get(size, 0) + 1
                assert torch.equal(graphs(there), steps[0](there))
            else:
                assert torch.allclose(graphs(there), steps[0](there), atol=0.05, rtol=0.05)
    assert graphs.failure is None
    assert graphs.captured
    assert sum(batch_of.values()) > 3
