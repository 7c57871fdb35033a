"""Clears Ray Data's statistics of blocks, which otherwise grow without bound.

Ray Data's report on an execution, which is not used here, holds statistics of each block that each
operator made: at a hundred million rows that is gigabytes in the driver. Ray's threads also
fragment the heap, by some kilobytes for each block, so it is trimmed too.
"""

import time
from typing import Any

from mediamill.pipeline.ray_cluster.trim_memory import trim_memory

_TRIM_S = 30.0


class ClearBlockStats:
    """Clears the statistics of one execution, and trims the heap from time to time."""

    def __init__(self) -> None:
        self._next_trim = 0.0  # on the monotonic clock

    def on_execution_step(self, executor: Any) -> None:
        """Empties the lists. Ray Data has no public way to turn the statistics off."""
        for operator in getattr(executor, "_topology", None) or ():
            stats = getattr(operator, "_output_blocks_stats", None)
            if isinstance(stats, list):
                stats.clear()
        if time.monotonic() >= self._next_trim:
            trim_memory()
            self._next_trim = time.monotonic() + _TRIM_S
