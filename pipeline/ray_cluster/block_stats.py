"""Turns Ray Data's memory of every block into one of those that are under way.

For its report on an execution Ray Data keeps statistics of each block that each operator made: at
a hundred million rows that is gigabytes in the driver. Nobody here asks for that report. Ray's
threads also leave holes in the heap, some kilobytes for each block, unless they are given back.
What the blocks hold is not known here.
"""

import time
from typing import Any

from mediamill.pipeline.ray_cluster.trim_memory import trim_memory

_GIVE_BACK_S = 30.0


class ClearBlockStats:
    """Ray Data's execution callback: its scheduling loop calls it after each step."""

    def __init__(self) -> None:
        self._next = 0.0  # on the monotonic clock, when memory is given back again

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing yet."""

    def on_execution_step(self, executor: Any) -> None:
        """Empties the lists that grow. There is no public way to have none."""
        for operator in getattr(executor, "_topology", None) or ():
            kept = getattr(operator, "_output_blocks_stats", None)
            if isinstance(kept, list):
                kept.clear()
        if time.monotonic() >= self._next:
            trim_memory()
            self._next = time.monotonic() + _GIVE_BACK_S

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing more."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing more."""
