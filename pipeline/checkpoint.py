"""Turns the URL of a checkpoint into a hash of its content, and into a local folder.

Looks at files and at the configuration, not at weights: those are model/weights.py's.
"""

import fcntl
import hashlib
import json
import shutil
import uuid
from pathlib import Path

from model.config import parse_config
from model.errors import ModelError
from pipeline import storage
from pipeline.storage import Place
from schemas.errors import JobError

_SUFFIXES = (".json", ".jinja", ".txt", ".safetensors")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONFIG = "config.json"
_NEEDED = (_CONFIG, "tokenizer.json")
_WHOLE_BYTES = 64 * 1024 * 1024  # files up to here are hashed whole
_SAMPLES, _SAMPLE_BYTES = 32, 64 * 1024  # of larger ones, besides their head
_HEAD_BYTES = 1024 * 1024  # a safetensors header: names, types and shapes


def check_checkpoint(url: str) -> Place:
    """The folder, if it holds a model that can be run. Raises JobError: what it lacks, or is."""
    place = storage.resolve(url)
    shown = storage.shown(place.url)
    try:
        if not place.fs.isdir(place.path):
            raise JobError(f"{shown}: found no such folder, expected a checkpoint in hub format")
        names = _names(place)
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


def content_hash(checkpoint: Place) -> str:
    """Of names and contents of all files that decide the text; 32 hex digits.

    Files up to 64 MiB count whole. Larger ones, which are weights, count with their size, their
    first MiB and 32 samples of 64 KiB at even distances: training or quantising changes every
    tensor, and the header names each.
    """
    whole = hashlib.blake2b(digest_size=16)
    for name in _names(checkpoint):
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


def local_folder(url: str, content: str, cache: Path) -> Path:
    """The checkpoint as a folder of this machine: itself, or a copy below `cache`, made once.

    content: its `content_hash`, which names the copy. Processes of one machine wait for each other.
    """
    place = storage.resolve(url)
    if place.is_local:
        return Path(place.path)
    target = cache / content
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{content}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = cache / f".{content}.{uuid.uuid4().hex}"
            try:
                partial.mkdir()
                for name in _names(place):
                    source = place / name
                    source.fs.get_file(source.path, str(partial / name))
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def _names(place: Place) -> list[str]:
    """Files of the folder itself that decide the text, sorted."""
    found = place.fs.ls(place.path, detail=True)
    names = [str(one["name"]).rpartition("/")[2] for one in found if one["type"] == "file"]
    return sorted(name for name in names if name[0] != "." and name.endswith(_SUFFIXES))


def _shards(place: Place, names: list[str]) -> set[str]:
    if _INDEX not in names:
        return set()
    try:
        return set(json.loads(storage.read(place / _INDEX))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise JobError(
            f"{storage.shown(place.url)}/{_INDEX}: found no weight_map ({error}), "
            "expected the names of tensors and their files"
        ) from error
