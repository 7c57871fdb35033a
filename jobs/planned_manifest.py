"""Hands manifests of sources from a plan to the run of the job, and back: none is listed twice.

A plan writes nothing to the output: its manifest lies in the machine's cache. What is handed over
looks like a listing that was killed: the next one goes on with it.
"""

import hashlib
import json
from pathlib import Path

from mediamill.pipeline.sources.manifest_parts import HIDDEN
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.job import JobConfig

_FOLDER = "forecasts/manifests"  # in resources.cache
_STATE, _NEW = f"{HIDDEN}/state.json", f"{HIDDEN}/new"


def planned_place(job: JobConfig) -> Place:
    """Returns where plans of the job put the manifest of its source, on this machine."""
    names = json.dumps([storage.absolute(job.manifest), storage.absolute(job.output)])
    digest = hashlib.blake2b(names.encode(), digest_size=16).hexdigest()
    return storage.resolve(str(Path(job.resources.cache).expanduser() / _FOLDER / digest))


def hand_over(source: Place, target: Place) -> None:
    """Copies a complete manifest of a source to a place where nothing is yet."""
    if not storage.exists(source / _STATE) or storage.exists(target / _STATE):
        return
    state = json.loads(storage.read(source / _STATE))
    if state["run"] is not None:
        return
    names = [name for name in storage.list_files(source) if "/" not in name and name[0] != "."]
    first = next(iter(state["units"].values()), None)
    # The state of a listing that was begun: each part says itself which units are in it.
    run = first[1] if first else hashlib.blake2b(source.url.encode()).hexdigest()[:32]
    storage.put(target / _STATE, json.dumps({**state, "run": run}).encode())
    for name in names:
        storage.put(target / _NEW / name, storage.read(source / name))
