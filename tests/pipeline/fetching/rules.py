"""Creates rules of fetching for tests."""

from mediamill.pipeline.fetching.fetcher import FetchRules
from mediamill.schemas.job import FetchConfig, Limits


def fetch_rules(max_bytes, timeout_s, base, cache_bytes=0, **changes):
    """changes: fields of FetchRules, and keys of the job's section `fetch`.

    The keys are not validated: tests use smaller budgets than a job can.
    """
    names = ("roots", "pause_s", "memory_bytes", "in_place")
    fields = {name: changes.pop(name) for name in names if name in changes}
    return FetchRules(
        FetchConfig().model_copy(update={"cache_bytes": cache_bytes, **changes}),
        Limits(max_bytes=max_bytes, fetch_timeout_s=timeout_s),
        base,
        use_cache=cache_bytes > 0,
        **fields,
    )
