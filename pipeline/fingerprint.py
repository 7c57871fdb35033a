"""Computes the fingerprint of a job: a hash of all that decides the text of a row besides the row.

An output has one fingerprint: a run with another one is refused.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from mediamill.schemas.job import JobConfig
from mediamill.schemas.job_types import FINGERPRINT_DEFAULT

# To be raised when the same inputs would give another text, so that old results are not continued.
ENGINE_VERSION = 1
_KEYS = ("job", "prompt", "prompts", "json_schema", "system", "dedupe")
_SECTIONS = ("generation", "image", "video")


def fingerprint_parts(job: JobConfig, checkpoint: str) -> dict[str, Any]:
    """Returns the parts that all kinds of tasks have; see `TaskKind.fingerprint` for the others.

    checkpoint: the hash of its content. The seed is a part only if the job samples.
    """
    seed = {} if job.generation.temperature == 0 else {"seed": job.seed}
    return {
        **_values(job, _KEYS),
        "engine": ENGINE_VERSION,
        "checkpoint": checkpoint,
        **{section: _values(getattr(job, section)) for section in _SECTIONS},
        "resources.dtype": job.resources.dtype,
        **seed,
    }


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Returns the hash of the parts, as 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _values(section: BaseModel, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Returns the values of some keys (None: all), as JSON can hold them.

    Leaves out keys that have their `added_later` default, so that outputs begun before these keys
    existed can be continued.
    """
    values = section.model_dump(mode="json", include=None if keys is None else set(keys))
    for key in list(values):
        extra = type(section).model_fields[key].json_schema_extra
        if not isinstance(extra, dict) or FINGERPRINT_DEFAULT not in extra:
            continue
        if values[key] == extra[FINGERPRINT_DEFAULT]:
            del values[key]
    return values
