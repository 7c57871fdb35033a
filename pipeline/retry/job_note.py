"""Keeps in an output the job of its last run, so that a retry finds it there.

Addresses may have secrets, which are not stored; the note then says which keys lack them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mediamill.pipeline.ledger.log import HIDDEN
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig, job_dict, load_job

JOB, ANNOTATION = "job.json", "annotation.json"
_BUILT_IN = "built-in"


@dataclass(frozen=True)
class JobNote:
    """run: that had the job. folder: in which it was started. redacted: keys without their secrets.

    job: all keys, in sections.
    """

    run: str
    folder: str
    redacted: tuple[str, ...]
    job: Mapping[str, Any]


def save_job(output: Place, job: JobConfig, run: str, name: str = JOB) -> None:
    """Stores the job. Paths are made absolute, since a retry may be started in another folder."""
    values = job_dict(job)
    for key in ("manifest", "output", "model"):
        if values[key] is not None and values[key] != _BUILT_IN:
            values[key] = storage.absolute(values[key])
    redacted: list[str] = []
    stored = _without_secrets(values, "", redacted)
    note = JobNote(run, str(Path.cwd()), tuple(redacted), stored)
    storage.put(output / HIDDEN / name, json.dumps(asdict(note), indent=1).encode())


def read_job(output: Place, name: str = JOB) -> JobNote | None:
    """Returns the stored job, None if the output has none."""
    try:
        values = json.loads(storage.read(output / HIDDEN / name))
    except FileNotFoundError:
        return None
    return JobNote(values["run"], values["folder"], tuple(values["redacted"]), values["job"])


def job_of(note: JobNote, shown: str, given: Mapping[str, object]) -> JobConfig:
    """Returns the job of a note. given: keys with other values, by dotted key.

    Raises JobError if a key that is not given lacks its secret.
    """
    for key in note.redacted:
        if key not in given:
            raise JobError(
                f"{shown}: {key} had a secret, which is not stored in the output: give the job "
                f"file with --config JOB.yaml, or {key}=..."
            )
    return load_job(None, {**note.job, **given})


def _without_secrets(value: Any, key: str, redacted: list[str]) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_secrets(item, f"{key}.{name}".lstrip("."), redacted)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(item, key, redacted) for item in value]
    if isinstance(value, str) and "://" in value:
        safe = storage.redact(value)
        if safe != value and key not in redacted:
            redacted.append(key)
        return safe
    return value
