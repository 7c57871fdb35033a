"""Stages that cannot be loaded: their import or constructor fails, or the process is killed."""

import os
import signal
from pathlib import Path
from typing import Any

from mediamill.model.errors import ModelError
from mediamill.schemas.job import JobConfig


def _note(job: JobConfig, name: str) -> None:
    with Path(f"{job.output}-tries").open("a") as file:
        file.write(f"{name} {os.getpid()}\n")


class LacksLibrary:
    def __init__(self, job: JobConfig, **_options: Any) -> None:
        _note(job, "lacks")
        import a_library_that_no_machine_has  # noqa: F401


class RefusesModel:
    def __init__(self, job: JobConfig, **_options: Any) -> None:
        _note(job, "refuses")
        raise ModelError("model: found 3 layers, expected 4")


class ExitsAtImport:
    def __init__(self, job: JobConfig, **_options: Any) -> None:
        _note(job, "exits")
        raise SystemExit("the library wants another machine")


class IsKilled:
    def __init__(self, job: JobConfig, **_options: Any) -> None:
        _note(job, "killed")
        os.kill(os.getpid(), signal.SIGKILL)
