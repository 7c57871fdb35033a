"""The Triton kernels: their arithmetic in Triton's interpreter, and that they compile for GPUs."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.model.engine_core.pages import attended, paged_case

# The interpreter multiplies matrices of bfloat16 as if they were integers, so that is for a GPU.
INTERPRETED = """
import sys
import torch
from mediamill.model.engine_core.triton_decode import paged_decode
from tests.model.engine_core.pages import attended, paged_case

for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float16, 2e-3)):
        case = paged_case(seed, dtype, rows=3)
        bound = case[3].shape[1] * case[1].shape[1]
        out = paged_decode(*case, bound)
        assert torch.allclose(out.float(), attended(*case), atol=tolerance), (seed, dtype)
        # The bits of a row depend neither on the bound, nor on the rows beside it.
        tight = paged_decode(*case, int(case[4].max()))
        assert torch.equal(tight, out), seed
        q, keys, values, table, seq_lens, window = case
        last = len(q) - 1
        alone = paged_decode(
            q[last:], keys, values, table[last:], seq_lens[last:], window, int(seq_lens[last])
        )
        assert torch.equal(alone[0], out[last]), seed
# A row that needs splits longer than the least.
case = paged_case(5, rows=1, longest=9000, sizes=(64, 80))
while int(case[4]) < 8400:
    case = paged_case(int(case[4]), rows=1, longest=9000, sizes=(64, 80))
out = paged_decode(*case[:5], None, int(case[4]))
assert torch.allclose(out, attended(*case[:5], None), atol=1e-6)
print("done")
"""


def child(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_the_kernels_give_the_formula_in_the_interpreter():
    pytest.importorskip("triton")
    answer = child(INTERPRETED, 8, 12, TRITON_INTERPRET="1")
    assert answer.stdout.strip() == "done", answer.stderr


@pytest.mark.slow
def test_the_kernels_give_the_formula_in_the_interpreter_often():
    pytest.importorskip("triton")
    answer = child(INTERPRETED, 12, 60, TRITON_INTERPRET="1")
    assert answer.stdout.strip() == "done", answer.stderr


COMPILED = """
import json
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mediamill.model.engine_core import triton_decode as ours

def compiled(kernel, types, constants):
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in types.items() if kind[0] == "*"
    }
    source = ASTSource(
        kernel, signature, {(names.index(n),): v for n, v in constants.items()}, aligned
    )
    options = {"num_warps": 4, "num_stages": 3}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

found = []
for kind, size, dim in json.loads(sys.argv[1]):
    padded = triton.next_power_of_2(dim)
    cut = {"window": 300, "tile": ours.tile_of(dim, size), "split": ours.SPLIT,
           "max_splits": ours.MAX_SPLITS, "dim": dim, "padded_dim": padded}
    first = compiled(
        ours._attend_split,
        {name: f"*{kind}" for name in ("q", "keys", "values")}
        | {"table": "*i32", "seq_lens": "*i32", "partial": "*fp32", "lse": "*fp32"}
        | {"table_stride": "i64", "scale": "fp32", "splits": "i32"},
        cut | {"groups": 6, "padded_groups": 16, "kv_heads": 2, "page_size": 16},
    )
    second = compiled(
        ours._combine_splits,
        {
            "partial": "*fp32",
            "lse": "*fp32",
            "seq_lens": "*i32",
            "out": f"*{kind}",
            "splits": "i32",
        },
        cut | {"heads": 12},
    )
    ptx = first.asm["ptx"]
    found.append([kind, dim, first.metadata.shared, "cp.async" in ptx, "mma.sync" in ptx,
                  second.metadata.shared])
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "shapes",
    [
        [["bf16", 2, 128]],
        pytest.param(
            [["fp32", 4, 128], ["fp16", 2, 80], ["bf16", 2, 256], ["fp32", 4, 256]],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_kernels_compile_for_a_gpu_that_is_not_here(shapes, tmp_path):
    pytest.importorskip("triton")
    pytest.importorskip("triton.backends.nvidia")
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    answer = child(COMPILED, json.dumps(shapes), **environment)
    assert answer.returncode == 0, answer.stderr
    for kind, dim, shared, copies_ahead, matrix_units, _ in json.loads(answer.stdout):
        assert shared < 100_000, (kind, dim)
        assert copies_ahead, (kind, dim)
        assert matrix_units == (kind != "fp32"), (kind, dim)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_rows_bits_depend_on_that_row_alone(dtype):
    pytest.importorskip("triton")
    from mediamill.model.engine_core.triton_decode import paged_decode

    for seed in range(20):
        q, keys, values, table, seq_lens, window = case = paged_case(
            seed, dtype, "cuda", rows=40, longest=4000
        )
        bound = table.shape[1] * keys.shape[1]
        out = paged_decode(*case, bound)
        tolerance = 2e-5 if dtype == torch.float32 else 2e-2
        assert torch.allclose(out.float().cpu(), attended(*case), atol=tolerance, rtol=tolerance)
        assert torch.equal(paged_decode(*case, int(seq_lens.max())), out)
        for row in range(len(q)):
            one = slice(row, row + 1)
            alone = paged_decode(q[one], keys, values, table[one], seq_lens[one], window, bound)
            assert torch.equal(alone[0], out[row])
