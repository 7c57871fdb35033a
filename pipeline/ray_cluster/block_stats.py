"""Clears Ray Data's per-block statistics, which otherwise grow without bound.

For its report on an execution Ray Data keeps statistics of each block that each operator made: at
a hundred million rows that is gigabytes in the driver. This pipeline does not use that report.
Ray's threads also fragment the heap, by some kilobytes for each block, so it is trimmed too.
"""

import time
from typing import Any

from mediamill.pipeline.ray_cluster.trim_memory import trim_memory

_TRIM_S = 30.0


class ClearBlockStats:
    """Ray Data's execution callback: its scheduling loop calls it after each step."""

    def __init__(self) -> None:
        self._next_trim = 0.0  # on the monotonic clock

    def before_execution_starts(self, executor: Any) -> None:
        """Does nothing."""

    def on_execution_step(self, executor: Any) -> None:
        """Empties the lists. Ray Data has no public way to turn the statistics off."""
        for operator in getattr(executor, "_topology", None) or ():
            stats = getattr(operator, "_output_blocks_stats", None)
            if isinstance(stats, list):
                stats.clear()
        if time.monotonic() >= self._next_trim:
            trim_memory()
            self._next_trim = time.monotonic() + _TRIM_S

    def after_execution_succeeds(self, executor: Any) -> None:
        """Does nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Does nothing."""
