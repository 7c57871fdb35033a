"""Loading weights: shards, names, dtypes, and every way in which a folder can be wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import ModelError
from model.weights import load_model
from tests.checkpoints import SHAPES, Shape, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "model", SHAPES["embedded"])


@pytest.fixture
def sharded(tmp_path):
    return write_checkpoint(tmp_path / "model", Shape({"tie_word_embeddings": False}, shards=3))


def change(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_is_loaded_as_stored(tmp_path, shape):
    folder = write_checkpoint(tmp_path, SHAPES[shape])
    stored = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    model = load_model(folder)
    parameters = dict(model.named_parameters())
    assert len(parameters) == len(stored)
    assert sorted(t.sum().item() for t in stored.values()) == sorted(
        p.sum().item() for p in parameters.values()
    )
    tied = model.config.text.tie_word_embeddings
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_the_dtype_is_the_files_unless_asked_otherwise(folder):
    change(folder, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    assert load_model(folder).dtype == torch.bfloat16
    model = load_model(folder, torch.float32)
    assert model.dtype == torch.float32
    assert model.model.inv_freq.dtype == torch.float32


def test_a_missing_tensor_is_named(folder):
    change(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"1 tensors are missing: model\.norm\.weight"):
        load_model(folder)


def test_an_unexpected_tensor_is_named(folder):
    change(folder, lambda tensors: tensors.update(surprise=torch.zeros(1)))
    with pytest.raises(ModelError, match="1 tensors are unexpected or repeated: surprise"):
        load_model(folder)


def test_a_misshapen_tensor_is_named(folder):
    change(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(64)}))
    with pytest.raises(ModelError, match=r"model.norm.weight is \[64\], expected \[128\]"):
        load_model(folder)


def test_a_tensor_in_two_shards_is_refused(sharded):
    first, second, _ = sorted(sharded.glob("*.safetensors"))
    tensors, repeated = load_file(first), load_file(second)
    name = next(iter(repeated))
    save_file(tensors | {name: repeated[name]}, first)
    with pytest.raises(ModelError, match=f"unexpected or repeated: {name}"):
        load_model(sharded)


def test_a_missing_shard_is_named(sharded):
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match="names 'model-00002-of-00003"):
        load_model(sharded)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/file.safetensors"])
def test_an_index_cannot_lead_out_of_the_folder(sharded, name):
    (sharded.parent / "secret.safetensors").write_bytes(b"x")
    index = {"weight_map": {"model.norm.weight": name}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="which is not a file of the folder"):
        load_model(sharded)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', "{}"])
def test_a_malformed_index_is_refused(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match="is not an index of weights"):
        load_model(sharded)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="is not a readable safetensors file"):
        load_model(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights: found neither"):
        load_model(folder)
