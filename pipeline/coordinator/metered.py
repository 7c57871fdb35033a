"""Wraps a guarded stage so that its process tells the desk how busy it is.

What the times mean is busy.py's.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from mediamill.pipeline.coordinator.guarded_stage import DeskCalls, Guard
from mediamill.pipeline.coordinator.utilization import BUSY, UP, Meter


class Metered(Guard):
    """A guarded stage that tells how busy it is. calls: see Meter."""

    def __init__(
        self, stage: type, options: Mapping[str, Any], desk: DeskCalls, pool: str, calls: int
    ) -> None:
        super().__init__(stage, options, desk, pool)
        self._meter = Meter(calls, lambda busy, up: desk.count({pool + BUSY: busy, pool + UP: up}))

    def __call__(self, table: pa.Table) -> pa.Table:
        """As of Guard."""
        with self._meter.working():
            return super().__call__(table)
