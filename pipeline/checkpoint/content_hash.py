"""Turns the URL of a checkpoint into what says that it can be run, and that it is still the same.

Looks at files and at the configuration, not at weights: those are model/weights.py's. How it comes
to the machines is local_copy.py's.
"""

import json
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem

from mediamill.model.checkpoint.content_hash import content_hash as hash_files
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
    """The hash of all files that decide the text, or of those that are no weights; 32 hex digits.

    model/checkpoint/content_hash.py says what of each file counts. Raises OSError.
    """

    def read(name: str, start: int, stop: int) -> bytes:
        place = checkpoint / name
        return bytes(
            storage.steadily(place, lambda fs: fs.cat_file(place.path, start=start, end=stop))
        )

    sizes = {
        name: int(checkpoint.fs.info((checkpoint / name).path)["size"])
        for name in names_of(checkpoint, weights)
    }
    return hash_files(sizes, read)


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
