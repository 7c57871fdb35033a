"""Computes a job's fingerprint: a hash of everything besides the row that determines a row's text.

An output has one fingerprint, and refuses runs with another one.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from mediamill.schemas.job import JobConfig
from mediamill.schemas.job_types import FINGERPRINT_DEFAULT

# Increase it when the same inputs give another text, so that old outputs are not continued.
ENGINE_VERSION = 2
_KEYS = ("job", "media_column", "prompt", "prompts", "json_schema", "system", "dedupe")
_SECTIONS = ("generation", "image", "video")
_RETRIES_AGAIN = ("smaller", "again", "temperature", "repetition_penalty")


def fingerprint_parts(job: JobConfig, checkpoint: str) -> dict[str, Any]:
    """Returns the parts that all kinds of tasks have; see `TaskKind.fingerprint` for the others.

    checkpoint: the hash of its content. The seed is a part only if the job samples, and the retries
    that decide texts only if there are any.
    """
    retries = _values(job.retries, _RETRIES_AGAIN if job.retries.again else ("smaller",))
    samples = job.generation.temperature != 0 or job.retries.again
    seed = {"seed": job.seed} if samples else {}
    return {
        **_values(job, _KEYS),
        "engine": ENGINE_VERSION,
        "checkpoint": checkpoint,
        **{section: _values(getattr(job, section)) for section in _SECTIONS},
        "resources.dtype": job.resources.dtype,
        **({"retries": retries} if retries else {}),
        **seed,
    }


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Returns the hash of the parts, as 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _values(section: BaseModel, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Returns the JSON values of some keys (None: all).

    Leaves out keys that have their `added_later` default, so that outputs begun before these keys
    existed can be continued.
    """
    values = section.model_dump(mode="json", include=None if keys is None else set(keys))
    defaults = {
        key: field.json_schema_extra[FINGERPRINT_DEFAULT]
        for key, field in type(section).model_fields.items()
        if isinstance(field.json_schema_extra, dict)
        and FINGERPRINT_DEFAULT in field.json_schema_extra
    }
    return {key: value for key, value in values.items() if defaults.get(key, ...) != value}
