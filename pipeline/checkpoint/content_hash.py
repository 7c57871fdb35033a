"""Turns the URL of a checkpoint into what says that it can be run, and that it is still the same.

Looks at files and at the configuration, not at weights: those are model/weights.py's. How it comes
to the machines is local_copy.py's.
"""

import hashlib
import json
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem

from mediamill.model.errors import ModelError
from mediamill.model.families.qwen2_vl.config import parse_config
from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_TENSORS = ".safetensors"
_SUFFIXES = (".json", ".jinja", ".txt", _TENSORS)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_NEEDED = (_CONFIG, "tokenizer.json")
_WHOLE_BYTES = 64 * 1024 * 1024  # files up to here are hashed whole
_SAMPLES, _SAMPLE_BYTES = 32, 64 * 1024  # of larger ones, besides their head
_HEAD_BYTES = 1024 * 1024  # a safetensors header: names, types and shapes


BUILT_IN = "built-in"  # names the model that ships with this program, wherever that is installed


def place_of(model: str) -> Place:
    """Where a job's model is on this machine."""
    if model == BUILT_IN:
        return Place(LocalFileSystem(), str(CHECKPOINT), BUILT_IN)
    return storage.resolve(model)


def check_checkpoint(model: str) -> Place:
    """The folder, if it holds a model that can be run. Raises JobError: what it lacks, or is."""
    place = place_of(model)
    shown = storage.redact(place.url)
    try:
        if not place.fs.isdir(place.path):
            raise JobError(f"{shown}: found no such folder, expected a checkpoint in hub format")
        names = names_of(place)
        weights = {_WEIGHTS} if _WEIGHTS in names else _shards(place, names)
    except OSError as error:
        raise JobError(f"{shown}: the checkpoint cannot be read: {error}") from error
    if not weights:
        raise JobError(
            f"{shown}: found no weights, expected {_WEIGHTS} or {_INDEX} with its shards"
        )
    missing = sorted({*_NEEDED, *weights} - set(names))
    if missing:
        raise JobError(f"{shown}: the checkpoint lacks {', '.join(missing)}")
    try:
        parse_config(storage.read(place / _CONFIG), f"{shown}/{_CONFIG}")
    except ModelError as error:
        raise JobError(str(error)) from error
    return place


@dataclass(frozen=True)
class CheckpointHash:
    """What a checkpoint holds, as `content_hash` has it: the whole, and all but the weights."""

    whole: str
    settings: str

    @classmethod
    def of(cls, checkpoint: Place) -> "CheckpointHash":
        """What it holds now."""
        return cls(content_hash(checkpoint), content_hash(checkpoint, weights=False))


def content_hash(checkpoint: Place, weights: bool = True) -> str:
    """Of names and contents of all files that decide the text, or of those that are no weights;
    32 hex digits.

    Files up to 64 MiB count whole. Larger ones, which are weights, count with their size, their
    first MiB and 32 samples of 64 KiB at even distances: training or quantising changes every
    tensor, and the header names each.
    """
    whole = hashlib.blake2b(digest_size=16)
    for name in names_of(checkpoint, weights):
        place = checkpoint / name
        size = int(place.fs.info(place.path)["size"])
        whole.update(f"{name}\0{size}\0".encode())
        if size <= _WHOLE_BYTES:
            whole.update(storage.read(place))
            continue
        with place.fs.open(place.path, "rb", cache_type="none") as file:
            whole.update(file.read(_HEAD_BYTES))
            span = size - _HEAD_BYTES - _SAMPLE_BYTES
            for sample in range(_SAMPLES):  # the last one ends where the file does
                file.seek(_HEAD_BYTES + span * sample // (_SAMPLES - 1))
                whole.update(file.read(_SAMPLE_BYTES))
    return whole.hexdigest()


def names_of(checkpoint: Place, weights: bool = True) -> list[str]:
    """Files of the folder itself that decide the text, sorted; weights: those too."""
    found = checkpoint.fs.ls(checkpoint.path, detail=True)
    names = [str(one["name"]).rpartition("/")[2] for one in found if one["type"] == "file"]
    wanted = [name for name in names if name[0] != "." and name.endswith(_SUFFIXES)]
    return sorted(name for name in wanted if weights or not name.endswith(_TENSORS))


def _shards(place: Place, names: list[str]) -> set[str]:
    if _INDEX not in names:
        return set()
    try:
        return set(json.loads(storage.read(place / _INDEX))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise JobError(
            f"{storage.redact(place.url)}/{_INDEX}: found no weight_map ({error}), "
            "expected the names of tensors and their files"
        ) from error
