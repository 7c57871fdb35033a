"""Turns a job's limits into the memory that decoding may take, all its processes together.

Knows ceilings, not what a row really takes: most rows take a hundredth.
"""

from mediamill.pipeline.decoding.shared_memory import KEPT_BYTES
from mediamill.schemas.job import Limits

GROWTH_BYTES = 256 * 1024**2  # that a worker may hold between rows more than when it was new

_MIB = 1024**2
# The process that asks, the nursery, what is fetched ahead, and the tables on their way: their
# sizes do not follow from the limits.
_ALWAYS_BYTES = (256 + 256 + 512 + 512) * _MIB
_WORKER_BYTES = 64 * _MIB  # that a fork does not share with the nursery


def memory_bytes(limits: Limits, slots: int) -> int:
    """Bytes for which an actor that prepares rows should ask, so that its node does not run out of
    memory while `slots` rows at once take all that they may.

    A worker's ceiling holds for one row: `limits.decode_bytes` above what it held before, which may
    be GROWTH_BYTES more than when it was new. What it shares stands beside it.
    """
    slot = limits.decode_bytes + GROWTH_BYTES + KEPT_BYTES + _WORKER_BYTES
    return _ALWAYS_BYTES + slots * slot
