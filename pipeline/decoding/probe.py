"""Turns a video into how long it lasts and where its scenes change, in a process that may break.

Both sides of that question: what the process does, and what is believed of its answer. What is made
of the numbers is not known here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile
from mediamill.pipeline.records import RowFailure
from mediamill.schemas.errors import ErrorCode

_LONGEST_S = 1e9  # 30 years: nothing that is real
_MOST_CUTS = 500_000  # they have to fit one answer
_FAILURES = frozenset(
    (
        ErrorCode.DECODE_CORRUPT,
        ErrorCode.DECODE_UNSUPPORTED,
        ErrorCode.DECODE_TOO_LARGE,
        ErrorCode.MEDIA_EMPTY,
    )
)


@dataclass(frozen=True)
class Measure:
    """What is asked of a video.

    whole: whether all of the file is there; else it may have holes, and only header and index are
    looked at. cuts: whether the scenes are wanted, too. threshold, min_s: of model/media's
    SceneRules.
    """

    whole: bool = True
    cuts: bool = False
    threshold: float | None = None
    min_s: float = 0.5


class Measured(BaseModel):
    """What a video is. whole_needed: only the whole file tells; then nothing else is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    duration_s: Annotated[float, Field(ge=0, le=_LONGEST_S)] = 0.0
    cuts: Annotated[list[float], Field(max_length=_MOST_CUTS)] = []
    whole_needed: bool = False


class Failure(BaseModel):
    """What a process says is wrong with a medium or its prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    code: ErrorCode = Field(strict=False)
    message: str


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    measured: Measured | None
    failure: Failure | None
    data_bytes: Annotated[int, Field(ge=0, lt=2**63)]


def told(header: bytes) -> tuple[Measured | None, RowFailure | None, int]:
    """What an answer says: the measure, or the failure; and the bytes that the process holds.

    Raises ValueError for what no sound process says.
    """
    found = _Told.model_validate_json(header)
    if (found.measured is None) == (found.failure is None):
        raise ValueError("found a measure and a failure, or neither, expected one")
    if found.failure is not None:
        if found.failure.code not in _FAILURES:
            raise ValueError(f"found the error {found.failure.code} of a measure")
        failure = RowFailure(found.failure.code.value, found.failure.message)
        return None, failure, found.data_bytes
    measured = found.measured
    assert measured is not None
    inside = [0.0, *measured.cuts]
    if not all(one < other for one, other in pairwise(inside)):
        raise ValueError("found cuts that do not ascend from above 0")
    if measured.cuts and measured.cuts[-1] > measured.duration_s:
        raise ValueError(f"found a cut behind the end at {measured.duration_s} s")
    return measured, None, found.data_bytes


@dataclass(frozen=True)
class Measurer:
    """What the decoding processes of a split hold in the place of a processor."""

    limits: MediaLimits
    rules: Mapping[str, Any] = field(default_factory=dict)  # no patches come of it

    def measure(self, data: bytes | Path, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a Measured. Raises MediaError."""
        from mediamill.model.media.duration import WholeFileNeededError, duration_s
        from mediamill.model.media.scene_cuts import SceneRules, scene_cuts

        rules = Measure(**asked)
        content = MediaFile.of(data)
        try:
            seconds = duration_s(content, self.limits, rules.whole)
        except WholeFileNeededError:
            return {"whole_needed": True}
        cuts: list[float] = []
        if rules.cuts:
            scenes = SceneRules(min_s=rules.min_s)
            if rules.threshold is not None:
                scenes = SceneRules(rules.threshold, rules.min_s)
            cuts = [one for one in scene_cuts(content, scenes, self.limits) if one > 0]
            # The frames know better than the header where the last one ends.
            seconds = max(seconds, math.nextafter(cuts[-1], math.inf)) if cuts else seconds
        return {"duration_s": seconds, "cuts": cuts}


def load_measurer(limits: Mapping[str, Any]) -> Measurer:
    """limits: arguments of MediaLimits."""
    return Measurer(MediaLimits(**limits))
