"""Wraps a guarded stage so that its process tells the desk how busy it is.

What the times mean is busy.py's.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.running.busy import BUSY, UP, Meter
from pipeline.running.guard import DeskCalls, Guard


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
