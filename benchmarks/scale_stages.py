"""Simulated stages that take a given time, to compare a run with its simulation."""

import threading
import time
from typing import Any

import pyarrow as pa

from mediamill.pipeline.run import Stages
from mediamill.schemas import columns as c
from tests.soak.simulated import PATCH_BYTES, Answered, Prepared

SLOTS = 4  # concurrent calls of an engine; further ones wait


def sleeping(prepare_s: float, generate_s: float, row_bytes: int = PATCH_BYTES) -> Stages:
    """Returns stages whose calls sleep, and do nearly no work.

    generate_s: of a running call; an actor runs SLOTS at once. row_bytes: of the patches of a row.
    """

    # Local classes are pickled with their values.
    class SlowPrepared(Prepared):
        def __call__(self, table: pa.Table) -> pa.Table:
            time.sleep(prepare_s if table.num_rows else 0.0)
            table = super().__call__(table)
            if row_bytes == PATCH_BYTES:
                return table
            number = table.schema.get_field_index(c.PATCHES)
            field = table.schema.field(number)
            patches = pa.repeat(pa.scalar(bytes(row_bytes), field.type), table.num_rows)
            return table.set_column(number, field, patches)

    class SlowAnswered(Answered):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._slots = threading.Semaphore(SLOTS)

        def __call__(self, table: pa.Table) -> pa.Table:
            with self._slots:
                time.sleep(generate_s if table.num_rows else 0.0)
            return super().__call__(table)

    return Stages(prepare=SlowPrepared, generate=SlowAnswered)
