"""Names the key of the job that would have kept the engines busy, if there is one."""

import math
from collections.abc import Mapping

from mediamill.pipeline.coordinator.failure_policy import GENERATE, PREPARE
from mediamill.pipeline.coordinator.utilization import (
    UP,
    bottleneck,
    bound_by,
    pool_utilization,
    stage_shares,
)
from mediamill.schemas import progress as p

_MIN_UP_S = 20.0  # of the engines: less is mostly start and end
_BUSY = 0.9  # engines that work so much of their time have nothing to gain
_MOST_FETCHES = 256


def advice(
    counters: Mapping[str, int], workers: int, most_workers: int, fetches: int
) -> str | None:
    """Returns a sentence with a key and its value; None if no key would have helped.

    counters: the coordinator's, of the whole run.
    workers: processes that prepared. most_workers: that the cluster has CPUs and memory for.
    fetches: that each worker makes at once (fetch.at_once).
    """
    shares, pools = stage_shares(counters), pool_utilization(counters)
    engine = shares.get(p.ENGINE)
    if engine is None or counters.get(GENERATE + UP, 0) < 1000 * _MIN_UP_S:
        return None
    if bottleneck(pools) != PREPARE or engine >= _BUSY:
        return None
    worked = f"the engines worked {engine:.0%} of their time and waited for rows"
    factor = min(pools[PREPARE] / max(engine, 0.01), 100.0)
    if bound_by(PREPARE, shares) == p.FETCH:
        wanted = min(_MOST_FETCHES, math.ceil(fetches * factor))
        if wanted <= fetches:
            return None
        return (
            f"fetch.at_once={wanted} may keep the engines busy: {worked}, since the workers waited "
            f"for files {shares[p.FETCH]:.0%} of theirs"
        )
    wanted = math.ceil(workers * factor)
    if most_workers <= workers or wanted <= workers:
        return None
    if wanted <= most_workers:
        return f"resources.prepare_workers={wanted} would have kept the engines busy: {worked}"
    share = min(1.0, engine * most_workers / workers)
    return (
        f"resources.prepare_workers={most_workers}, the most that the machines have room for, "
        f"would have kept the engines busy {share:.0%} of their time: {worked}"
    )
