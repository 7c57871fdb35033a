"""Turns requests into bytes and back: patches as safetensors, all else as JSON beside them.

Never a pickle: what arrives can only be a request.
"""

import json
from dataclasses import asdict
from typing import Any

from safetensors.torch import load, save

from mediamill.model.inputs import VisualInput
from mediamill.model.requests import Request
from mediamill.model.sampling import Sampling

_HEAD = "request"
_TUPLES = ("eos_token_ids", "stop")


def request_bytes(request: Request) -> bytes:
    """A request as bytes."""
    facts = {
        "id": request.id,
        "input_ids": [int(token) for token in request.input_ids],
        "visuals": [[one.kind, one.grid_thw, one.merge_size] for one in request.visuals],
        "sampling": asdict(request.sampling),
        "mode": request.mode,
        "continuations": [[int(token) for token in each] for each in request.continuations],
        "pool": request.pool,
        "normalize": request.normalize,
        "media_names": request.media_names,
    }
    patches = {str(i): one.patches.cpu().contiguous() for i, one in enumerate(request.visuals)}
    return save(patches, {_HEAD: json.dumps(facts)})


def request_of(data: bytes) -> Request:
    """The request that `request_bytes` has turned into `data`."""
    size = int.from_bytes(data[:8], "little")
    head: dict[str, Any] = json.loads(data[8 : 8 + size])
    facts = json.loads(head["__metadata__"][_HEAD])
    patches = load(data)
    sampling = facts["sampling"]
    for name in _TUPLES:
        sampling[name] = None if sampling[name] is None else tuple(sampling[name])
    names = facts["media_names"]
    return Request(
        facts["id"],
        facts["input_ids"],
        tuple(
            VisualInput(kind, patches[str(i)], (grid[0], grid[1], grid[2]), merge)
            for i, (kind, grid, merge) in enumerate(facts["visuals"])
        ),
        Sampling(**sampling),
        facts["mode"],
        facts["continuations"],
        facts["pool"],
        facts["normalize"],
        None if names is None else tuple(names),
    )
