"""Headers of safetensors files: what is stored is described, and hostile ones cost nothing."""

import json
import re
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.safetensors_file import read_header
from mediamill.model.checkpoint.stored_values import read_into, read_values
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


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_is_stored_is_described(tmp_path):
    (tmp_path / FILE).write_bytes(save(TENSORS, {"format": "pt", "about": 'a "quoted" {text}'}))
    found = {one.name: one for one in read_header(Folder.of(tmp_path), FILE)}
    content = (tmp_path / FILE).read_bytes()
    assert {name: one.shape for name, one in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    for name, tensor in TENSORS.items():
        stored = content[found[name].start : found[name].stop]
        assert stored == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_header_longer_than_one_request(tmp_path):
    names = [f"layer.{number}.{'x' * 100}" for number in range(3000)]
    (tmp_path / FILE).write_bytes(save({name: torch.ones(1) for name in names}))
    assert sorted(one.name for one in read_header(Folder.of(tmp_path), FILE)) == sorted(names)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "does not begin with '{'"),
        (b"[]", "does not begin with '{'"),
        (b' {"a": 1}', "does not begin with '{'"),
        (b"{", "expected a text"),
        (b"{1: 2}", "expected a text"),
        (b'{"a"', "expected ':'"),
        (b'{"a": ', "a is described by"),
        (b'{"a": {}}', "a is described by {}, expected an object with dtype"),
        (b'{"a": 3}', "a is described by 3"),
        (b'{"\xff": 3}', "utf-8"),
        (b"{} {}", "goes on after the end"),
        (b'{"a": ' + b"[" * 100_000, "a is described by|recursion"),
        (b'{"a": ' + b"[{}," * 100_000, "a is described by"),
        (b'{"a": [' + b"9" * 10_000 + b"]}", "a is described by"),
        (b'{"__metadata__": {"a": {}}}', "expected a text"),
        (b'{"__metadata__": ' + b"[" * 100_000 + b"}", "expected '{'"),
        ({"a": {**entry(), "more": 1}}, "a is described by"),
        ({"a": entry(dtype="F99")}, "a has the dtype 'F99', which is not known"),
        ({"a": entry(dtype=["F32"])}, "a has the dtype"),
        ({"a": entry(shape=[-2, -1])}, r"a has the shape \[-2, -1\]"),
        ({"a": entry(shape=[2.0])}, "a has the shape"),
        ({"a": entry(shape=[True, 2])}, "a has the shape"),
        ({"a": entry(shape=[2**63])}, "a has the shape"),
        ({"a": entry(shape=[1] * 17)}, "a has the shape"),
        ({"a": entry(shape=[2**62] * 16)}, "a has 8 bytes, expected .* values of 4 bytes"),
        ({"a": entry(shape=[3])}, "a has 8 bytes, expected 3 values of 4 bytes"),
        ({"a": entry(offsets=[0])}, "a has the data_offsets"),
        ({"a": entry(offsets=[8, 0])}, "a has the data_offsets"),
        ({"a": entry(offsets=[-8, 0])}, "a has the data_offsets"),
        ({"a": entry(offsets=[0, 2**70])}, "a has the data_offsets"),
        ({"a": entry(offsets=[0, 4])}, "a has 4 bytes"),
        ({"a": entry(offsets=[4, 12])}, "a begins at byte 4 of the data, expected 0"),
        ({"a": entry(), "b": entry()}, "b begins at byte 0 of the data, expected 8"),
        ({"a": entry(), "b": entry(offsets=[10, 18])}, "b begins at byte 10"),
        ({"a": entry(), "b": entry(offsets=[8, 16])}, "its tensors end at byte"),
        ({}, "its tensors end at byte"),
        (b'{"a": 1, "a": 2}', "a is described by 1"),
        (
            b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            "a key is there twice",
        ),
        (
            (json.dumps({"a": entry()})[:-1] + ", " + json.dumps({"a": entry()})[1:]).encode(),
            "describes a twice",
        ),
        (json.dumps({"a": entry()}).encode()[:-1] + b",}", "expected a text"),
    ],
)
def test_a_wrong_header_is_refused_and_costs_little(tmp_path, header, words):
    folder = written(tmp_path, header, data=bytes(8))
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=words) as caught:
            read_header(folder, FILE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{tmp_path}/{FILE} is not a readable safetensors file: ")
    assert len(str(caught.value)) < 1000
    assert peak < 4 * 1024 * 1024


@pytest.mark.parametrize("length", [0, 3, 1000, 10**8, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_wrong_length_is_refused_and_costs_little(tmp_path, length):
    folder = written(tmp_path, {"a": entry()}, bytes(8), length)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="safetensors file"):
            read_header(folder, FILE)
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40])
def test_a_file_that_ends_early_is_refused(tmp_path, size):
    (tmp_path / FILE).write_bytes(save(TENSORS)[:size])
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path}/{FILE} is not a whole")):
        read_header(Folder.of(tmp_path), FILE)


def test_names_are_shown_safely(tmp_path):
    folder = written(tmp_path, {"x\n\x1b[31m\ud800" + "y" * 999: entry(shape=[3])}, bytes(8))
    with pytest.raises(ModelError) as caught:
        read_header(folder, FILE)
    message = str(caught.value)
    message.encode()
    assert message.isprintable()
    assert len(message) < 500


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 800), st.binary(min_size=1, max_size=3), st.booleans())
def test_nothing_is_accepted_that_the_formats_own_reader_refuses(
    tmp_path_factory, at, change, insert
):
    path = tmp_path_factory.mktemp("changed")
    content = save(TENSORS)
    (path / FILE).write_bytes(
        content[:at] + change + content[at + (0 if insert else len(change)) :]
    )
    try:
        found = read_header(Folder.of(path), FILE)
    except ModelError:
        return
    with safe_open(path / FILE, framework="pt") as file:
        assert {one.name for one in found} == set(file.keys())
        assert {one.name: list(one.shape) for one in found} == {
            name: file.get_slice(name).get_shape()
            for name in file.keys()  # noqa: SIM118
        }


# --- values


@pytest.fixture(params=["disk", "memory"])
def floats(request, tmp_path):
    """A folder of floats at odd places of the file, on disk and on a remote file system."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{number}": torch.randn(size, generator=generator).to(dtype)
        for number, (size, dtype) in enumerate(
            [
                ((3_000_001,), torch.float32),  # longer than one request
                ((5,), torch.bfloat16),
                ((0, 3), torch.float16),
                ((7, 3), torch.float16),
                ((), torch.float32),
            ]
        )
    }
    header, data = {"odd": entry([1], [0, 1], "U8")}, b"x"
    for name, tensor in tensors.items():
        bytes_ = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        kind = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[tensor.dtype]
        header[name] = entry(tensor.shape, [len(data), len(data) + len(bytes_)], kind)
        data += bytes_
    folder = written(tmp_path, header, data)
    if request.param == "memory":
        other = Folder.of(f"memory://{tmp_path.name}")
        other.fs.pipe_file(other.full(FILE), (tmp_path / FILE).read_bytes())
        folder = other
    return folder, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_arrive_in_any_dtype(floats, dtype):
    folder, tensors = floats
    stored = [one for one in read_header(folder, FILE) if one.name in tensors]
    targets = {one.name: torch.full(one.shape, 9.0, dtype=dtype) for one in stored}
    read_into(folder, FILE, [(one, targets[one.name]) for one in reversed(stored)])
    for name, tensor in tensors.items():
        assert torch.equal(targets[name], tensor.to(dtype))


def test_values_come_bit_by_bit(floats):
    folder, tensors = floats
    stored = [one for one in read_header(folder, FILE) if one.name in ("0", "3")]
    parts: dict[str, list[torch.Tensor]] = {"0": [], "3": []}
    for tensor, first, values in read_values(folder, FILE, stored):
        assert first == sum(map(len, parts[tensor.name]))
        parts[tensor.name].append(values.clone())
    for name, found in parts.items():
        assert torch.equal(torch.cat(found), tensors[name].flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_shrinks_while_it_is_read_is_refused(floats, dtype):
    folder, _ = floats
    stored = next(one for one in read_header(folder, FILE) if one.name == "0")
    with folder.fs.open(folder.full(FILE), "rb") as file:
        content = file.read(stored.stop - 100)
    folder.fs.pipe_file(folder.full(FILE), content)
    with pytest.raises(ModelError, match=r"early|got \d+ bytes"):
        read_into(folder, FILE, [(stored, torch.empty(stored.shape, dtype=dtype))])
