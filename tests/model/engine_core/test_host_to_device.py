"""Host-to-device copies: packed tensors are unpacked unchanged, and arrive in time on a GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.model.engine_core.host_to_device import (
    ALIGNMENT,
    HostToDeviceCopier,
    layout,
    pack,
    unpack,
)
from mediamill.model.inputs import VisualInput

DTYPES = (torch.uint8, torch.int32, torch.int64, torch.bfloat16, torch.float32, torch.bool)
KINDS = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6
)


def drawn(kinds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)
        for dtype, shape in kinds
    ]


@settings(max_examples=60, deadline=None)
@given(KINDS)
def test_what_is_packed_comes_out_again(kinds):
    tensors = drawn(kinds)
    offsets, size = layout([tensor.nbytes for tensor in tensors])
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    buffer = torch.full((size,), 255, dtype=torch.uint8)
    pack(tensors, offsets, buffer)
    for before, after in zip(tensors, unpack(buffer, offsets, tensors), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


def test_on_the_cpu_nothing_is_copied():
    tensors = drawn([(torch.uint8, (3, 4)), (torch.int64, (2,))])
    arrived = HostToDeviceCopier(torch.device("cpu")).copy(tensors)
    assert all(a is b for a, b in zip(arrived, tensors, strict=True))
    visual = VisualInput("image", tensors[0], (1, 2, 2))
    assert HostToDeviceCopier(torch.device("cpu")).copy_visuals([visual]) == (visual,)


@pytest.mark.gpu
def test_tensors_arrive_whole_whatever_happens_to_their_sources():
    copier, sums, expected = HostToDeviceCopier(torch.device("cuda")), [], []
    for seed in range(30):
        kinds = [(torch.uint8, (1000 + 400 * seed, 588)), (torch.int64, (77,))]
        tensors = drawn(kinds, seed)
        expected += [int(tensor.long().sum()) for tensor in tensors]
        arrived = copier.copy(tensors)
        for tensor in tensors:
            tensor.zero_()
        sums += [tensor.long().sum() for tensor in arrived]
    assert torch.stack(sums).tolist() == expected
