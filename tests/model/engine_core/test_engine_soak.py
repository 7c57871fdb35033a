"""Requests of every kind, cancelled and impossible ones among them: each is answered once."""

import random
import resource
from pathlib import Path

import pytest

from mediamill.model.engine import Engine, Request
from mediamill.model.sampling import Sampling
from mediamill.model.tiny import CHECKPOINT
from tests.model.json_schemas import SCHEMAS, text
from tests.model.prompts import MEDIA, prompt

# Requests after which memory must have settled, and how many bytes it may grow from there.
_SETTLED, _SLACK = 10_000, 64 * 2**20
_SCHEMAS = [text(SCHEMAS[name]) for name in ("nested", "text")]


def resident() -> int:
    """Bytes of this process that are in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def one(rng: random.Random, number: int, cases: list) -> Request:
    case = rng.choice(cases)
    ids = case.ids + [rng.randrange(500) for _ in range(rng.choice([0, 0, 3, 40]))]
    wish = Sampling(
        max_new_tokens=rng.choice([1, 2, 5, 12]),
        temperature=rng.choice([0.0, 0.0, 2.0]),
        repetition_penalty=rng.choice([None, 1.2]),
        stop=rng.choice([None, None, ("a", "circle")]),
        logprobs=rng.choice([0, 0, 2]),
        top_k=0,
        seed=number,
        json_schema=_SCHEMAS[number % 2] if number % 9 < 2 else None,
    )
    mode = rng.choice(["generate"] * 6 + ["score", "embed"])
    more = [[rng.randrange(500) for _ in range(rng.randrange(5))]] * 2 if mode == "score" else ()
    wrong = rng.random()
    if wrong < 0.02:
        ids = []
    elif wrong < 0.04:
        ids = [*ids[:-1], 10**6]
    elif wrong < 0.06:
        ids = [1, 2, 3] * 3000
    elif wrong < 0.08:
        mode, more = "score", ()
    names = tuple(str(id(v.patches)) for v in case.visuals) if rng.random() < 0.5 else None
    return Request(str(number), ids, case.visuals, wish, mode, more, media_names=names)


def run(count: int, seed: int, **options) -> None:
    rng = random.Random(seed)
    cases = [prompt(50 + i, MEDIA[i % len(MEDIA)], words=2 + i) for i in range(18)]
    engine = Engine.load(CHECKPOINT, device="cpu", batch_rows=16, **options)
    answered: dict[str, str] = {}
    waiting: list[str] = []
    added = cancelled = 0
    settled: int | None = None
    while added < count or engine.unfinished:
        for _ in range(rng.randrange(6) if engine.unfinished < 60 else 0):
            if added < count:
                engine.add(one(rng, added, cases))
                waiting.append(str(added))
                added += 1
        if waiting and rng.random() < 0.1:
            name = waiting[rng.randrange(max(0, len(waiting) - 40), len(waiting))]
            cancelled += engine.cancel(name)
        for completion in engine.step():
            assert completion.id not in answered
            answered[completion.id] = completion.finish_reason
        if settled is None and len(answered) > _SETTLED:
            settled = resident()
    assert answered.keys() == {str(i) for i in range(count)}
    reasons = list(answered.values())
    assert set(reasons) == {"stop", "length", "done", "cancelled", "error"}
    assert reasons.count("cancelled") == cancelled
    assert 0.03 * count < reasons.count("error") < 0.15 * count
    stats = engine.stats()
    assert stats.rows == stats.pages_in_use == 0
    assert stats.finished + stats.cancelled + stats.failed == count
    assert stats.reused_tokens > count
    # Until then torch's kernels for new shapes, of which it keeps so many, fill up their caches.
    if count >= 2 * _SETTLED:
        assert settled is not None
        assert resident() - settled < _SLACK


@pytest.mark.parametrize("options", [{}, {"page_size": 16, "cache_tokens": 2000}])
def test_three_hundred_requests(options):
    run(300, 1, **options)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("options", [{}, {"page_size": 16, "cache_tokens": 4000}])
def test_twenty_thousand_requests(options):
    run(20_000, 2, **options)
