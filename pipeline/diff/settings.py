"""Compares what two outputs were made with: fingerprint parts, layout, job files, columns."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mediamill.model.urls import redact_text
from mediamill.pipeline.inspect.output import Output
from mediamill.pipeline.ledger.log import HIDDEN
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

_JOB_FILES = ("annotation.json", "job.json")  # that runs leave
_OWN = ("output",)  # keys that differ whenever there are two outputs
MISSING = "(none)"


@dataclass(frozen=True)
class Setting:
    """A key with two values, as texts. decides: whether it is a part of the fingerprint."""

    name: str
    a: str
    b: str
    decides: bool


def settings(a: Output, b: Output) -> tuple[list[Setting], int]:
    """Returns the settings that differ, and how many are the same."""
    parts = _pairs(_flat(a.parts), _flat(b.parts), True)
    names = {setting.name for setting in parts[0]}
    jobs = _flat(_job(a)), _flat(_job(b))
    others: tuple[list[Setting], int] = ([], 0)
    if all(jobs):
        others = _pairs(*jobs, False)
    if a.header is None and b.header is None:
        return [], 0
    layouts = _pairs(
        _flat({"partition_by": _partitions(a)}), _flat({"partition_by": _partitions(b)}), False
    )
    different = [*parts[0], *(s for s in others[0] if s.name not in names)]
    names |= {setting.name for setting in different}
    different += [setting for setting in layouts[0] if setting.name not in names]
    return different, parts[1] + others[1] + layouts[1]


def columns_of_one(a: Output, b: Output) -> tuple[list[str], list[str]]:
    """Returns the columns that only one of the outputs has."""
    first, second = a.schema.names, b.schema.names
    return (
        [name for name in first if name not in second],
        [name for name in second if name not in first],
    )


def _pairs(a: Mapping[str, str], b: Mapping[str, str], decides: bool) -> tuple[list[Setting], int]:
    different, same = [], 0
    for name in {**a, **b}:
        if name.partition(".")[0] in _OWN:
            continue
        values = a.get(name, MISSING), b.get(name, MISSING)
        if values[0] == values[1]:
            same += 1
        else:
            different.append(Setting(name, *values, decides))
    return different, same


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: redact_text(text) for name, text in _entries(values, "")}


def _entries(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _entries(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{name}", text


def _partitions(output: Output) -> list[str]:
    return list(output.partition_columns)


def _job(output: Output) -> Mapping[str, Any]:
    """The job of the last run; empty if the output does not hold it."""
    root: Place = output.root
    for name in _JOB_FILES:
        for place in (root, output.place):
            try:
                job = json.loads(storage.read(place / HIDDEN / name)).get("job", {})
                return job if isinstance(job, Mapping) else {}
            except (OSError, ValueError):
                continue
    return {}
