"""What a checkpoint folder must have, and what its hash depends on."""

import json
import shutil

import pytest

from mediamill.model.checkpoint import content_hash as hashing
from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.checkpoint.checkpoint_hash import (
    CheckpointHash,
    check_checkpoint,
    content_hash,
)
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(CHECKPOINT, tmp_path / "model")


def hash_of(folder):
    return content_hash(storage.resolve(str(folder)))


def test_what_is_missing_is_named(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(JobError, match=r"the checkpoint lacks tokenizer\.json"):
        check_checkpoint(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(JobError, match=r"found no weights, expected model\.safetensors"):
        check_checkpoint(str(folder))
    weights = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))
    (folder / "model-1.safetensors").write_bytes(b"x")
    with pytest.raises(JobError, match=r"lacks model-2\.safetensors, tokenizer\.json"):
        check_checkpoint(str(folder))
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(JobError, match="found no weight_map"):
        check_checkpoint(str(folder))
    with pytest.raises(JobError, match="no such folder"):
        check_checkpoint(str(tmp_path / "none"))


def test_the_hash_follows_what_decides_the_text(folder):
    before = hash_of(folder)
    (folder / "README.md").write_text("about")
    (folder / ".gitattributes").write_text("x")
    assert hash_of(folder) == before == hash_of(CHECKPOINT)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert hash_of(folder) != before


def test_what_is_no_weight_has_a_hash_of_its_own(folder):
    before = CheckpointHash.of(storage.resolve(str(folder)))
    (folder / "model.safetensors").write_bytes(b"other weights")
    weights = CheckpointHash.of(storage.resolve(str(folder)))
    assert weights.settings == before.settings
    assert weights.whole != before.whole
    (folder / "tokenizer.json").write_text("{}")
    assert CheckpointHash.of(storage.resolve(str(folder))).settings != before.settings


@pytest.mark.parametrize("where", [0, 0.3, 0.7, 0.999])
def test_large_files_are_sampled(folder, monkeypatch, where):
    monkeypatch.setattr(hashing, "_WHOLE_BYTES", 100_000)
    monkeypatch.setattr(hashing, "_HEAD_BYTES", 50_000)
    before = hash_of(folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    assert len(weights) > 100_000
    # As training would, change much; here a quarter of the file from some place on.
    start = int(len(weights) * where)
    for index in range(start, min(start + len(weights) // 4, len(weights))):
        weights[index] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert hash_of(folder) != before


def test_a_model_that_cannot_be_run_is_refused_before_anything_starts(folder):
    config = json.loads((folder / "config.json").read_text())
    for change, sentence in (
        ({"model_type": "llama"}, "model_type is 'llama', expected 'qwen2_vl'"),
        ({"quantization_config": {"quant_method": "awq"}}, "the weights are quantised"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(JobError, match=sentence):
            check_checkpoint(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(JobError, match="cannot be read as JSON"):
        check_checkpoint(str(folder))
