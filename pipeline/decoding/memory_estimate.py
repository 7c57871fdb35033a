"""Estimates the memory of an actor that decodes, from the limits of the job.

It is an upper limit: most rows take a hundredth of their share.
"""

from mediamill.pipeline.decoding.shared_memory import RETAINED_BYTES
from mediamill.schemas.job import Limits

MAX_GROWTH_BYTES = 256 * 1024**2  # by which a worker may grow between rows before it is replaced

_MIB = 1024**2
# The actor's process, the fork server, what is fetched ahead, and the tables between the stages:
# their sizes do not follow from the limits.
_BASE_BYTES = (256 + 256 + 512 + 512) * _MIB
_WORKER_BYTES = 64 * _MIB  # that a worker does not share with the fork server


def memory_bytes(limits: Limits, workers: int) -> int:
    """Bytes for an actor to request, enough for `workers` rows at once that take all they may.

    A row may take `limits.decode_bytes` on top of what its worker held before, which may be
    MAX_GROWTH_BYTES more than when the worker was new. Shared memory is added to that.
    """
    worker = limits.decode_bytes + MAX_GROWTH_BYTES + RETAINED_BYTES + _WORKER_BYTES
    return _BASE_BYTES + workers * worker
