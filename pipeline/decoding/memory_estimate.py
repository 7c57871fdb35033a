"""Estimates the memory that an actor which decodes needs, from the limits of the job.

These are upper limits: most rows take a hundredth of them.
"""

from mediamill.pipeline.decoding.shared_memory import RETAINED_BYTES
from mediamill.schemas.job import Limits

MAX_GROWTH_BYTES = 256 * 1024**2  # that a worker may hold between rows more than when it was new

_MIB = 1024**2
# The actor's process, the fork server, what is fetched ahead, and the tables between the stages:
# their sizes do not follow from the limits.
_BASE_BYTES = (256 + 256 + 512 + 512) * _MIB
_WORKER_BYTES = 64 * _MIB  # that a worker does not share with the fork server


def memory_bytes(limits: Limits, workers: int) -> int:
    """Bytes for an actor to request, so that its node has enough memory while `workers` rows at
    once take all that they may.

    The limit of a worker holds for one row: `limits.decode_bytes` above what it held before, which
    may be MAX_GROWTH_BYTES more than when it was new. Shared memory comes on top of it.
    """
    worker = limits.decode_bytes + MAX_GROWTH_BYTES + RETAINED_BYTES + _WORKER_BYTES
    return _BASE_BYTES + workers * worker
