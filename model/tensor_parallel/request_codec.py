"""Encodes requests for the other ranks: patches as safetensors, all else as JSON in its header.

No pickle is used, so that received bytes can only become a request.
"""

import json
from dataclasses import asdict
from typing import Any

from safetensors.torch import load, save

from mediamill.model.inputs import VisualInput
from mediamill.model.requests import Request
from mediamill.model.sampling import Sampling

_METADATA_KEY = "request"
_TUPLE_FIELDS = ("eos_token_ids", "stop")


def encode_request(request: Request) -> bytes:
    """Returns the request as bytes."""
    fields = {
        "id": request.id,
        "input_ids": [int(token) for token in request.input_ids],
        "visuals": [[v.kind, v.grid_thw, v.merge_size] for v in request.visuals],
        "sampling": asdict(request.sampling),
        "mode": request.mode,
        "continuations": [[int(token) for token in ids] for ids in request.continuations],
        "pool": request.pool,
        "normalize": request.normalize,
        "media_names": request.media_names,
    }
    patches = {str(i): v.patches.cpu().contiguous() for i, v in enumerate(request.visuals)}
    return save(patches, {_METADATA_KEY: json.dumps(fields)})


def decode_request(data: bytes) -> Request:
    """Returns the request that `encode_request` has encoded."""
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    fields = json.loads(header["__metadata__"][_METADATA_KEY])
    patches = load(data)
    sampling = fields["sampling"]
    for name in _TUPLE_FIELDS:
        sampling[name] = None if sampling[name] is None else tuple(sampling[name])
    names = fields["media_names"]
    return Request(
        fields["id"],
        fields["input_ids"],
        tuple(
            VisualInput(kind, patches[str(i)], (grid[0], grid[1], grid[2]), merge)
            for i, (kind, grid, merge) in enumerate(fields["visuals"])
        ),
        Sampling(**sampling),
        fields["mode"],
        fields["continuations"],
        fields["pool"],
        fields["normalize"],
        None if names is None else tuple(names),
    )
