"""Defines the keys of a job file for machines and processes; see schemas/job_models.py."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from mediamill.schemas.job_types import (
    RANGE,
    AutoCountOrRange,
    AutoOrCount,
    Count,
    Expected,
    Strict,
    Text,
)


def span(value: str | int) -> tuple[int | None, int | None]:
    """Returns the smallest and the largest size of a pool; None = decided by the cluster."""
    if isinstance(value, int):
        return value, value
    match = RANGE.fullmatch(value)
    return (int(match[1]), int(match[2])) if match else (None, None)


class Labels(Strict):
    """Labels of the Ray nodes on which the processes of a stage may run."""

    prepare: Mapping[str, str] = {}
    generate: Mapping[str, str] = {}


class Resources(Strict):
    """What the job runs on."""

    replicas: AutoCountOrRange = Field(
        default="auto",
        description="copies of the model that work side by side; auto = all that the cluster has "
        "room for, also later; a range waits for the first number and grows up to the second",
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], Expected("auto, cpu or cuda")] = Field(
        default="auto",
        description="what the model runs on; auto = GPUs if the cluster has some when the job "
        "starts, cuda waits for them",
    )
    tensor_parallel: Count = Field(default=1, description="GPUs that share one copy of the model")
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Expected("auto, bfloat16, float16 or float32"),
    ] = Field(default="auto", description="number format of weights and activations")
    prepare_workers: AutoCountOrRange = Field(
        default="auto",
        description="processes that fetch and decode media; auto = as many as the model needs",
    )
    labels: Annotated[
        Labels, Expected("a mapping from prepare or generate to labels, each with a text")
    ] = Field(
        default=Labels(),
        description="of the nodes that a stage may use, as Ray has them: a, !a, in(a,b), !in(a,b)",
    )
    wait_s: Annotated[float, Field(ge=0), Expected("a number of at least 0")] = Field(
        default=1800.0, description="seconds to wait for nodes that the job needs and Ray lacks"
    )
    batch_rows: AutoOrCount = Field(
        default="auto", description="rows that the model works on at once"
    )
    max_engine_failures: Annotated[int, Field(ge=0), Expected("a whole number of at least 0")] = (
        Field(
            default=8,
            description="broken engines that are replaced before the job stops, in one run",
        )
    )
    grace_s: Annotated[float, Field(ge=0), Expected("a number of at least 0")] = Field(
        default=60.0, description="seconds to finish what has begun, when the job is told to stop"
    )
    cache: Text = Field(
        default="~/.cache/mediamill",
        description="folder of each machine for copies of models that are not on its disk",
    )
