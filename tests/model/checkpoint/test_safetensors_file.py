"""Headers of safetensors files: what is stored is described, and hostile ones cost nothing."""

import json
import re
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.safetensors_file import (
    TensorCopy,
    read_blocks,
    read_header,
    shown_name,
)
from mediamill.model.errors import ModelError

FILE = "model.safetensors"
TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.arange(5, dtype=torch.bfloat16),
    "c": torch.tensor(7, dtype=torch.float16),
    "d": torch.zeros(0, 4),
    "e": torch.tensor([True, False]),
    "f": torch.arange(3, dtype=torch.int8),
    "g": torch.arange(3, dtype=torch.float16).to(torch.float8_e4m3fn),
}


def written(path, header, data=b"", length=None):
    """A folder whose one file has this header, as JSON or as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    count = (len(text) if length is None else length).to_bytes(8, "little")
    (path / FILE).write_bytes(count + text + data)
    return Folder.of(path)


def peak_bytes():
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_is_stored_is_described(tmp_path):
    (tmp_path / FILE).write_bytes(save(TENSORS, {"format": "pt", "about": 'a "quoted" {text}'}))
    stored = {tensor.name: tensor for tensor in read_header(Folder.of(tmp_path), FILE)}
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    dtypes = {name: tensor.dtype for name, tensor in stored.items()}
    assert dtypes == dict(
        zip("abcdefg", ["F32", "BF16", "F16", "F32", "BOOL", "I8", "F8_E4M3"], strict=True)
    )
    assert {tensor.file for tensor in stored.values()} == {FILE}


def test_a_header_of_hundreds_of_kilobytes(tmp_path):
    names = [f"layer.{number}.{'x' * 100}" for number in range(3000)]
    (tmp_path / FILE).write_bytes(save({name: torch.ones(1) for name in names}))
    stored = read_header(Folder.of(tmp_path), FILE)
    assert sorted(tensor.name for tensor in stored) == sorted(names)


JSON = "its header is not the JSON of the format"
SIZE = "a tensor has other bytes than its shape and dtype need"
OVERFLOW = "a tensor has an impossible shape"
LAYOUT = "its tensors overlap, or there is a hole between them"
END = "its tensors do not end where the file does"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", JSON),
        (b"[]", JSON),
        (b"{", JSON),
        (b"{1: 2}", JSON),
        (b'{"a"', JSON),
        (b'{"a": ', JSON),
        (b'{"a": {}}', JSON),
        (b'{"a": 3}', JSON),
        (b'{"\xff": 3}', "its header is not UTF-8"),
        (b"{} {}", JSON),
        (b'{"a": ' + b"[" * 100_000, JSON),
        (b'{"a": ' + b"[{}," * 100_000, JSON),
        (b'{"a": [' + b"9" * 10_000 + b"]}", JSON),
        (b'{"__metadata__": {"a": {}}}', JSON),
        (b'{"__metadata__": ' + b"[" * 100_000 + b"}", JSON),
        ({"a": entry(dtype="F99")}, JSON),
        ({"a": entry(dtype="F99\n\x1b[31m" + "9" * 10_000)}, JSON),
        ({"a": entry(dtype=["F32"])}, JSON),
        ({"a": entry(shape=[-2, -1])}, JSON),
        ({"a": entry(shape=[2.0])}, JSON),
        ({"a": entry(shape=[True, 2])}, JSON),
        ({"a": entry(shape=[2**63])}, OVERFLOW),
        ({"a": entry(shape=[2**62] * 16)}, OVERFLOW),
        ({"a": entry(shape=[3])}, SIZE),
        ({"a": entry(shape=[1] * 17)}, SIZE),
        ({"a": entry(offsets=[0])}, JSON),
        ({"a": entry(offsets=[8, 0])}, LAYOUT),
        ({"a": entry(offsets=[-8, 0])}, JSON),
        ({"a": entry(offsets=[0, 2**70])}, JSON),
        ({"a": entry(offsets=[0, 2**63])}, SIZE),
        ({"a": entry(offsets=[0, 4])}, SIZE),
        ({"a": entry(offsets=[4, 12])}, LAYOUT),
        ({"a": entry(), "b": entry()}, LAYOUT),
        ({"a": entry(), "b": entry(offsets=[10, 18])}, LAYOUT),
        ({"a": entry(), "b": entry(offsets=[8, 16])}, END),
        ({}, END),
        (b'{"a": 1, "a": 2}', JSON),
        (
            b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            JSON,
        ),
        (json.dumps({"a": entry()}).encode()[:-1] + b",}", JSON),
    ],
)
def test_a_wrong_header_is_refused_and_costs_little(tmp_path, header, words):
    folder = written(tmp_path, header, data=bytes(8))
    before = peak_bytes()
    with pytest.raises(ModelError, match=words) as caught:
        read_header(folder, FILE)
    assert peak_bytes() - before < 16 * 1024 * 1024
    assert str(caught.value).startswith(f"{tmp_path}/{FILE} is not a whole safetensors file: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_name_that_a_header_has_twice_is_one_tensor(tmp_path):
    twice = json.dumps({"a": entry()})[:-1] + ", " + json.dumps({"a": entry()})[1:]
    folder = written(tmp_path, twice.encode(), bytes(8))
    assert [tensor.name for tensor in read_header(folder, FILE)] == ["a"]
    other = json.dumps({"a": entry()})[:-1] + ", " + json.dumps({"a": entry(offsets=[8, 16])})[1:]
    with pytest.raises(ModelError, match=LAYOUT):
        read_header(written(tmp_path, other.encode(), bytes(16)), FILE)


@pytest.mark.parametrize("length", [0, 3, 1000, 10**8, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_wrong_length_is_refused_and_costs_little(tmp_path, length):
    folder = written(tmp_path, {"a": entry()}, bytes(8), length)
    before = peak_bytes()
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        read_header(folder, FILE)
    assert peak_bytes() - before < 16 * 1024 * 1024


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40])
def test_a_file_that_ends_early_is_refused(tmp_path, size):
    (tmp_path / FILE).write_bytes(save(TENSORS)[:size])
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path}/{FILE} is not a whole")):
        read_header(Folder.of(tmp_path), FILE)


def test_names_are_shown_safely(tmp_path):
    folder = written(tmp_path, {"x\n\x1b[31m" + "y" * 999: entry(offsets=[4, 12])}, bytes(12))
    with pytest.raises(ModelError) as caught:
        read_header(folder, FILE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700
    for name in ("x\n\x1b[31m\ud800" + "y" * 999, "z" * 999):
        assert shown_name(name).isprintable()
        assert len(shown_name(name)) <= 200
        shown_name(name).encode()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 800), st.binary(min_size=1, max_size=3), st.booleans())
def test_a_changed_header_is_read_or_refused_with_a_sentence(tmp_path_factory, at, change, insert):
    path = tmp_path_factory.mktemp("changed")
    content = save(TENSORS)
    (path / FILE).write_bytes(
        content[:at] + change + content[at + (0 if insert else len(change)) :]
    )
    try:
        stored = read_header(Folder.of(path), FILE)
    except ModelError as error:
        assert FILE in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert len(stored) <= len(TENSORS)


# --- values


@pytest.fixture(params=[1, 64 * 1024 * 1024])
def floats(tmp_path, request, monkeypatch):
    """A file with float tensors at odd offsets, among others, read in small or large blocks."""
    monkeypatch.setattr("mediamill.model.checkpoint.safetensors_file._MAPPED_BYTES", request.param)
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 50), (7,), (0, 3), (13, 5, 2), (1, 1)]
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.bfloat16]
    tensors = {
        str(number): torch.randn(shape, generator=generator).to(dtype)
        for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    }
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
    header, data = {"odd": entry([3], [0, 3], "U8")}, b"odd"
    for name, tensor in tensors.items():
        values = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = entry(
            tensor.shape, [len(data), len(data) + len(values)], kinds[tensor.dtype]
        )
        data += values
    return written(tmp_path, header, data), tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_arrive_in_any_dtype(floats, dtype):
    folder, tensors = floats
    stored = [tensor for tensor in read_header(folder, FILE) if tensor.name in tensors]
    targets = {tensor.name: torch.full(tensor.shape, 9.0, dtype=dtype) for tensor in stored}
    copies = [TensorCopy(tensor, targets[tensor.name]) for tensor in reversed(stored)]
    for values, target in read_blocks(folder, FILE, copies):
        assert values.shape == target.shape
        target.copy_(values)
    for name, tensor in tensors.items():
        assert torch.equal(targets[name], tensor.to(dtype))


def test_a_file_that_is_gone_is_named(floats):
    folder, _ = floats
    stored = [tensor for tensor in read_header(folder, FILE) if tensor.name == "0"]
    (tmp := Path(folder.full(FILE))).rename(tmp.with_suffix(".old"))
    with pytest.raises(ModelError, match=rf"{FILE}: found no such file, expected weights"):
        read_header(folder, FILE)
    copies = [TensorCopy(tensor, torch.empty(tensor.shape)) for tensor in stored]
    with pytest.raises(ModelError, match=rf"{FILE} cannot be read: No such file"):
        next(read_blocks(folder, FILE, copies))
