"""The GPU benchmark: its arithmetic against what torch counts, and a dry run without a GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import table
from benchmarks.gpu_parts import RULES, Batch
from benchmarks.gpu_setup import SHAPES, built
from mediamill.model.inputs import VisualInput
from mediamill.model.layers.attention import PackedCausalAttention
from mediamill.pipeline.forecast import roofline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return built("miniature", CPU, torch.float32)


def counted(work):
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_the_flops_of_the_vision_tower_are_those_that_torch_counts(model):
    grids = [(1, 8, 8), (1, 4, 12), (3, 4, 4)]
    media = []
    for grid in grids:
        kind = "video" if grid[0] > 1 else "image"
        shape = (grid[0] * grid[1] * grid[2], RULES[kind].patch_values(kind))
        media.append(VisualInput(kind, torch.zeros(shape, dtype=torch.uint8), grid))
    flops = counted(lambda: model.visual.encode(media, RULES, "eager"))
    assert flops == pytest.approx(roofline.vision_flops(model.config, grids), rel=1e-6)


def test_the_flops_of_prefill_and_decode_are_those_that_torch_counts(model):
    text = model.config.text
    lengths = [30, 50]
    embeddings = torch.zeros(sum(lengths), text.hidden_size)
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1)

    def prefill():
        hidden = model.hidden_states(embeddings, positions, PackedCausalAttention(lengths, "eager"))
        model.logits(hidden[:2])

    # torch counts the half that causal attention hides, too.
    width = text.num_attention_heads * text.head_dim
    hidden = sum(2 * n * n * width * text.num_hidden_layers for n in lengths)
    expected = roofline.prefill_flops(text, lengths)
    assert counted(prefill) - hidden == pytest.approx(expected, rel=1e-6)
    batch = Batch(model, 3, 40, "gather")
    # It does not count the attention of this kernel.
    expected = roofline.decode_flops(text, 3, 0)
    assert counted(lambda: batch.step(batch.inputs)) == pytest.approx(expected, rel=1e-6)


def test_bytes_of_a_step_are_weights_and_cache(model):
    text = model.config.text
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    assert roofline.layer_weights(text) == layers
    assert roofline.head_weights(text) == model.lm_head.weight.numel()
    batch = Batch(model, 5, 48, "gather")
    held = sum(t[:-1].numel() * 4 for t in (*batch.cache.keys, *batch.cache.values))
    assert roofline.cache_bytes(text, 4) * 5 * 48 == held
    weights = 4 * (layers + model.lm_head.weight.numel())
    assert roofline.decode_bytes(text, 5, 48, 4) == weights + held


def test_the_shapes_are_those_of_the_published_networks():
    for shape, millions in (("2B", 2209), ("7B", 8291)):
        with torch.device("meta"):
            from mediamill.model.families.qwen2_vl.config import config_from_dict
            from mediamill.model.families.qwen2_vl.model import Qwen2VL

            model = Qwen2VL(config_from_dict(SHAPES[shape], shape))
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_rows_with_other_columns_make_one_table():
    text = table([{"what": "a", "ms": 12.34}, {"what": "b", "of the ceiling": 0.5}])
    assert text.splitlines() == [
        "what    ms  of the ceiling",
        "a     12.3",
        "b" + 19 * " " + "50.0 %",
    ]


@pytest.mark.slow
def test_the_whole_benchmark_runs_without_a_gpu(tmp_path):
    path = tmp_path / "gpu.json"
    arguments = [sys.executable, "-m", "benchmarks.gpu", "--cpu", "--workers", "1"]
    answer = subprocess.run(
        [*arguments, "--json", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(path.read_text())
    assert len(found["sections"]) == 8
    for name, rows in found["sections"].items():
        assert not [
            row["what"] for row in rows if row["what"].startswith(("failed", "left out"))
        ], name
