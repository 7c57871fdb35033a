"""Simulated stages that take a given time, so that a run can be held against its simulation."""

import threading
import time
from typing import Any

import pyarrow as pa

from mediamill.pipeline.run import Stages
from mediamill.schemas import columns as c
from tests.soak.simulated import PATCH_BYTES, Answered, Prepared

SLOTS = 4  # calls that an engine works on at once; the others wait for their turn


def sleeping(prepare_s: float, generate_s: float, row_bytes: int = PATCH_BYTES) -> Stages:
    """Stages whose calls take so many seconds of waiting, and next to none of work.

    generate_s: of a call that is being worked on, as SLOTS of an actor are at once. row_bytes: of
    the patches of a row.
    """

    # Classes of a function travel to the actors with the values that they hold.
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
