"""Wraps a guarded stage so that its process tells the desk how busy it is.

What the times mean is busy.py's.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from mediamill.pipeline.coordinator.guarded_stage import CoordinatorCalls, GuardedStage
from mediamill.pipeline.coordinator.utilization import BUSY, UP, UtilizationMeter


class MeteredStage(GuardedStage):
    """A guarded stage that tells how busy it is. calls: see UtilizationMeter."""

    def __init__(
        self, stage: type, options: Mapping[str, Any], desk: CoordinatorCalls, pool: str, calls: int
    ) -> None:
        super().__init__(stage, options, desk, pool)
        self._meter = UtilizationMeter(
            calls, lambda busy, up: desk.count({pool + BUSY: busy, pool + UP: up})
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """As of GuardedStage."""
        with self._meter.working():
            return super().__call__(table)
