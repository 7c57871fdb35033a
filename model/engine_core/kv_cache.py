"""The two kinds of KV cache, and what they make for a prefill and for decode steps."""

from mediamill.model.engine_core.contiguous_cache import (
    ContiguousBatch,
    ContiguousCache,
    ContiguousWriter,
)
from mediamill.model.engine_core.paged_cache import PagedBatch, PagedCache, PageWriter

Cache = PagedCache | ContiguousCache
CacheWriter = PageWriter | ContiguousWriter
DecodeBatch = PagedBatch | ContiguousBatch
