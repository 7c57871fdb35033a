"""Finds how long a video lasts and where its scenes change, in a decode worker.

reply.py validates the result that the worker sends back.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mediamill.model.inputs import VisualKind
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile

_MAX_DURATION_S = 1e9  # 30 years
_MAX_CUTS = 500_000  # they have to fit into one reply


@dataclass(frozen=True)
class ProbeRequest:
    """What to find out about a video.

    whole: whether the file is complete; if not, only its header and index are read.
    cuts: whether to look for scene changes, too.
    threshold, min_s: of SceneRules.
    """

    whole: bool = True
    cuts: bool = False
    threshold: float | None = None
    min_s: float = 0.5


class ProbeResult(BaseModel):
    """The result of a probe. cuts: seconds at which a new scene begins.

    whole_needed: the probe needs the whole file; the other fields then mean nothing.
    kind, height, width: of a HeaderProber only; the size as stored, 0 if the header has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    duration_s: Annotated[float, Field(ge=0, le=_MAX_DURATION_S)] = 0.0
    cuts: Annotated[list[float], Field(max_length=_MAX_CUTS)] = []
    whole_needed: bool = False
    kind: VisualKind | None = None
    height: Annotated[int, Field(ge=0, lt=2**31)] = 0
    width: Annotated[int, Field(ge=0, lt=2**31)] = 0


@dataclass(frozen=True)
class Prober:
    """Probes videos; the decode workers of an annotate job load it instead of a Processor.

    rules: those of a Processor: none, since a probe makes no patches.
    """

    limits: MediaLimits
    rules: Mapping[str, Any] = field(default_factory=dict)

    def probe(self, data: bytes | Path, request: ProbeRequest) -> ProbeResult:
        """Probes one video. Raises MediaError."""
        from mediamill.model.media.duration import WholeFileNeededError, duration_s
        from mediamill.model.media.scene_cuts import SceneRules, scene_cuts

        content = MediaFile.of(data)
        try:
            seconds = duration_s(content, self.limits, request.whole)
        except WholeFileNeededError:
            return ProbeResult(whole_needed=True)
        cuts: list[float] = []
        if request.cuts:
            rules = SceneRules(min_s=request.min_s)
            if request.threshold is not None:
                rules = SceneRules(request.threshold, request.min_s)
            cuts = [cut for cut in scene_cuts(content, rules, self.limits) if cut > 0]
            # A header may declare an end that lies before the last frames.
            seconds = max(seconds, math.nextafter(cuts[-1], math.inf)) if cuts else seconds
        # Not validated here: the receiver does, and treats an invalid result as a crash.
        return ProbeResult.model_construct(duration_s=seconds, cuts=cuts)


def load_prober(limits: Mapping[str, Any]) -> Prober:
    """The factory for a DecoderPool. limits: arguments of MediaLimits."""
    return Prober(MediaLimits(**limits))
