"""Encodes requests for the other ranks: patches as safetensors, all else as JSON in its header.

No pickle is used, so that received bytes can only become a request.
"""

import json
from typing import Any

from safetensors.torch import load, save

from mediamill.model.inputs import VisualInput
from mediamill.model.requests import Request
from mediamill.model.sampling import Sampling

_METADATA_KEY = "request"


def encode_request(request: Request) -> bytes:
    """Returns the request as bytes."""
    values = vars(request) | {
        "input_ids": [int(token) for token in request.input_ids],
        "visuals": [[v.kind, v.grid_thw, v.merge_size] for v in request.visuals],
        "sampling": vars(request.sampling),
        "continuations": [[int(token) for token in ids] for ids in request.continuations],
    }
    patches = {str(i): v.patches.cpu().contiguous() for i, v in enumerate(request.visuals)}
    return save(patches, {_METADATA_KEY: json.dumps(values)})


def decode_request(data: bytes) -> Request:
    """Returns the request that `encode_request` has encoded."""
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    values = json.loads(header["__metadata__"][_METADATA_KEY])
    patches, sampling = load(data), values["sampling"]
    # JSON has no tuples.
    for owner, name in ((values, "media_names"), (sampling, "eos_token_ids"), (sampling, "stop")):
        owner[name] = None if owner[name] is None else tuple(owner[name])
    values["sampling"] = Sampling(**sampling)
    values["visuals"] = tuple(
        VisualInput(kind, patches[str(i)], tuple(grid), merge)
        for i, (kind, grid, merge) in enumerate(values["visuals"])
    )
    return Request(**values)
