"""Defines the keys of a job file for machines and processes; see schemas/job_config.py."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from mediamill.schemas.job_types import (
    RANGE,
    AutoCountOrRange,
    AutoOrCount,
    Count,
    Expected,
    NonNegative,
    Strict,
    Text,
    key,
)


def size_range(value: str | int) -> tuple[int | None, int | None]:
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

    replicas: AutoCountOrRange = key(
        "auto",
        "copies of the model that work in parallel; auto = all that the cluster has room for, also "
        "as it grows; 2..8 = wait for 2, then grow to 8",
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], Expected("auto, cpu or cuda")] = key(
        "auto",
        "what the model runs on; auto = GPUs if the cluster has any when the job starts, cuda "
        "waits for them",
    )
    tensor_parallel: Count = key(1, "GPUs that share one copy of the model")
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"],
        Expected("auto, bfloat16, float16 or float32"),
    ] = key("auto", "number format of weights and activations")
    prepare_workers: AutoCountOrRange = key(
        "auto", "processes that fetch and decode media; auto = as many as the model needs"
    )
    labels: Annotated[
        Labels, Expected("a mapping from prepare or generate to labels, each with a text")
    ] = key(
        Labels(),
        "labels of the Ray nodes that a stage may use, in Ray's syntax: a, !a, in(a,b), !in(a,b)",
    )
    wait_s: NonNegative = key(1800.0, "seconds to wait for nodes that the cluster lacks")
    batch_rows: AutoOrCount = key("auto", "rows that one copy of the model works on at once")
    max_engine_failures: Annotated[int, Field(ge=0), Expected("a whole number of at least 0")] = (
        key(8, "broken engines that a run replaces before it stops")
    )
    grace_s: NonNegative = key(60.0, "seconds to finish the rows in flight when the job is stopped")
    cache: Text = key("~/.cache/mediamill", "folder of each machine for copies of remote models")
