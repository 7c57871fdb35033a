"""Checks that the checkpoint of a job can be run, and computes the hash of its content.

The check reads the file names and the configuration. Loading checks the weights (model/weights.py).
"""

import json
import re
from dataclasses import dataclass

from fsspec.implementations.local import LocalFileSystem

from mediamill.model.checkpoint.content_hash import content_hash as hash_files
from mediamill.model.errors import ModelError
from mediamill.model.families.qwen2_vl.config import parse_config
from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError
from mediamill.schemas.nearest import nearest

_TENSORS = ".safetensors"
_SUFFIXES = (".json", ".jinja", ".txt", _TENSORS)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_NEEDED = (_CONFIG, "tokenizer.json")
BUILT_IN = "built-in"  # names the model that ships with this program


def place_of(model: str) -> Place:
    """Returns the folder of a job's model. Raises JobError for a URL that cannot be opened."""
    if model == BUILT_IN:
        return Place(LocalFileSystem(), str(CHECKPOINT), BUILT_IN)
    return storage.resolve(model)


def check_checkpoint(model: str) -> Place:
    """Returns the folder of a job's model. Raises JobError when the model cannot be run."""
    place = place_of(model)
    shown = storage.redact(place.url)
    try:
        if not place.fs.isdir(place.path):
            raise JobError(
                f"{shown}: found no such folder, expected a checkpoint in hub format{_hint(model)}"
            )
        names = names_of(place)
        weights = {_WEIGHTS} if _WEIGHTS in names else _shards(place, names)
    except OSError as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{shown}: the checkpoint cannot be read: {reason}") from error
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


def _hint(model: str) -> str:
    """Returns what may have been meant by a name that is no folder."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith("."):
        return f"; the model of that name on the hub is hf://{model}"
    if re.fullmatch(r"[Qq]wen[\w.-]+", model):
        return f"; the model of that name on the hub is hf://Qwen/{model}"
    if nearest(model.lower().replace("_", "-"), [BUILT_IN]):
        return f"; the model that ships with this program is {BUILT_IN}"
    return ""


@dataclass(frozen=True)
class CheckpointHash:
    """Two hashes of a checkpoint: of all its files, and of all but the weights."""

    whole: str
    settings: str

    @classmethod
    def of(cls, checkpoint: Place) -> "CheckpointHash":
        """Reads the files. Raises OSError."""
        return cls(content_hash(checkpoint), content_hash(checkpoint, weights=False))


def content_hash(checkpoint: Place, weights: bool = True) -> str:
    """Returns the hash of the files of `names_of`, 32 hex digits. Raises OSError.

    model/checkpoint/content_hash.py says which bytes of a file count.
    """
    paths = {name: (checkpoint / name).path for name in names_of(checkpoint, weights)}

    def read(name: str, start: int, stop: int) -> bytes:
        return bytes(
            storage.with_retries(
                checkpoint, lambda fs: fs.cat_file(paths[name], start=start, end=stop)
            )
        )

    sizes = {name: int(checkpoint.fs.info(path)["size"]) for name, path in paths.items()}
    return hash_files(sizes, read)


def names_of(checkpoint: Place, weights: bool = True) -> list[str]:
    """Returns the names of the files that decide the text, sorted; with or without the weights."""
    entries = checkpoint.fs.ls(checkpoint.path, detail=True)
    names = [str(entry["name"]).rpartition("/")[2] for entry in entries if entry["type"] == "file"]
    names = [name for name in names if name[0] != "." and name.endswith(_SUFFIXES)]
    return sorted(name for name in names if weights or not name.endswith(_TENSORS))


def weights_bytes(checkpoint: Place) -> int | None:
    """Returns the size of the weights' files; None where it cannot be read."""
    try:
        entries = checkpoint.fs.ls(checkpoint.path, detail=True)
        return sum(int(entry["size"]) for entry in entries if entry["name"].endswith(_TENSORS))
    except Exception:  # noqa: BLE001 - only the progress shows it
        return None


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
