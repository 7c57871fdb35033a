"""Scores and embeddings equal those of the reference's forward pass."""

import random

import pytest
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.media.patches import normalize
from mediamill.model.sampling import Sampling
from tests import oracle
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.batches import reference_inputs
from tests.model.prompts import IMAGE, MEDIA, VIDEO, prompt

SHARE = [{}, {"page_size": 4}, {"share_prefixes": False}]
CASES = [prompt(70 + i, media, words=3 + i) for i, media in enumerate(MEDIA)]
CONTINUATIONS = [[5], [], [9, 12, 300, 44, 8], [5, 7], list(range(40, 60))]


@pytest.fixture(scope="module", params=["embedded", "sliding window", "yarn"])
def both(request, tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("score"), SHAPES[request.param], seed=9)
    return Engine.load(folder, device="cpu", mrope="hf5"), oracle.load_model(folder)


def another(engine, **options):
    return Engine(engine.model, engine.rules, engine.defaults, **options)


@torch.inference_mode()
def reference_pass(reference, case, more=()):
    ids = torch.tensor([[*case.ids, *more]])
    inputs = reference_inputs([case], ids, torch.ones_like(ids))
    out = reference(**inputs, output_hidden_states=True)
    return out.logits[0].float().log_softmax(-1), out.hidden_states[-1][0].float()


@pytest.mark.parametrize("options", SHARE)
def test_scores_equal_the_references(both, options):
    engine, reference = another(both[0], **options), both[1]
    requests = [
        Request(str(i), case.ids, case.visuals, mode="score", continuations=CONTINUATIONS)
        for i, case in enumerate(CASES)
    ]
    # Between rows that generate, and once more, when the prompts are known.
    answers = [
        Request(f"g{i}", case.ids, case.visuals, Sampling(max_new_tokens=4))
        for i, case in enumerate(CASES)
    ]
    mixed = [one for pair in zip(requests, answers, strict=True) for one in pair]
    rounds = [{c.id: c for c in engine.generate(mixed)} for _ in range(2)]
    for number, case in enumerate(CASES):
        for tokens, *found in zip(
            CONTINUATIONS, *(r[str(number)].scores for r in rounds), strict=True
        ):
            logprobs, _ = reference_pass(reference, case, tokens)
            want = [logprobs[len(case.ids) - 1 + i, token].item() for i, token in enumerate(tokens)]
            for score in found:
                assert score.logprobs == pytest.approx(want, abs=1e-4)
                assert score.total == pytest.approx(sum(want), abs=1e-3)
        assert rounds[0][str(number)].finish_reason == "done"
        assert rounds[0][f"g{number}"].output_ids == rounds[1][f"g{number}"].output_ids
    if "share_prefixes" not in options:
        assert engine.stats().reused_tokens > 100


def test_the_score_of_an_answer_is_what_it_had_when_it_was_generated(both):
    engine = both[0]
    for case in CASES[:4]:
        wish = Sampling(max_new_tokens=9, eos_token_ids=(), repetition_penalty=1.0)
        (answer,) = engine.generate([Request("a", case.ids, case.visuals, wish)])
        asked = [answer.output_ids[:n] for n in (9, 4)]
        (score,) = engine.generate(
            [Request("s", case.ids, case.visuals, mode="score", continuations=asked)]
        )
        assert score.scores[0].logprobs == pytest.approx(answer.logprobs, abs=1e-4)
        assert score.scores[1].logprobs == pytest.approx(answer.logprobs[:4], abs=1e-4)


def test_scores_where_frequencies_follow_the_length(tmp_path):
    """Each continuation is then a sequence of its own, as in one pass of the reference."""
    folder = write_checkpoint(tmp_path, SHAPES["longrope"], seed=3)
    engine = Engine.load(folder, device="cpu", mrope="hf5")
    reference = oracle.load_model(folder)
    case = prompt(3, MEDIA[1], words=22)
    long = [i % 300 for i in range(30)]
    request = Request("s", case.ids, case.visuals, mode="score", continuations=[[4, 5], long])
    (done,) = engine.generate([request])
    assert len(case.ids) < 64 < len(case.ids) + 30
    # The reference takes its long frequencies for every pass beyond 64 tokens.
    for tokens, score in zip(request.continuations, done.scores, strict=True):
        logprobs, _ = reference_pass(reference, case, tokens[:-1])
        want = [logprobs[len(case.ids) - 1 + i, token].item() for i, token in enumerate(tokens)]
        first = reference_pass(reference, case)[0][-1, tokens[0]].item()
        assert score.logprobs == pytest.approx([first, *want[1:]], abs=1e-4)


def relative(found, want):
    """The distance of two vectors, as a part of the second's length."""
    want = want.double()
    return ((torch.tensor(found, dtype=torch.float64) - want).norm() / want.norm()).item()


@torch.inference_mode()
def tower(reference, case):
    """Visual tokens of all media in order, by the reference's vision tower alone."""
    found = []
    for visual in case.visuals:
        grid = torch.tensor([visual.grid_thw])
        found.append(reference.model.visual(normalize(visual.patches), grid_thw=grid).pooler_output)
    return torch.cat(found).float()


def wanted_pools(reference, case):
    _, hidden = reference_pass(reference, case)
    visual = torch.tensor([token in (IMAGE, VIDEO) for token in case.ids])
    pools = {"last": hidden[-1], "mean": hidden.mean(0)}
    if case.visuals:
        pools["visual_tokens"] = hidden[visual].mean(0)
        pools["vision_tower"] = tower(reference, case).mean(0)
    return pools


@pytest.mark.parametrize("scale", [False, True])
def test_embeddings_equal_the_references(both, scale):
    """All pools at once, between rows that generate, and alone."""
    engine, reference = both
    want = {
        f"{number} {pool}": (vector, pool, case)
        for number, case in enumerate(CASES)
        for pool, vector in wanted_pools(reference, case).items()
    }
    requests = [
        Request(name, case.ids, case.visuals, mode="embed", pool=pool, normalize=scale)
        for name, (_, pool, case) in want.items()
    ]
    answers = [Request(f"g{i}", c.ids, c.visuals) for i, c in enumerate(CASES)]
    together = {c.id: c for c in engine.generate([*answers, *requests])}
    alone = {r.id: next(iter(engine.generate([r]))) for r in requests[::3]}
    for name, (vector, _, case) in want.items():
        vector = vector / vector.norm() if scale else vector
        for done in (together[name], alone.get(name, together[name])):
            assert relative(done.embedding, vector) < 1e-5
            assert (done.finish_reason, done.output_ids) == ("done", [])
            assert done.prompt_tokens == len(case.ids)
        if scale:
            norm = torch.tensor(together[name].embedding).norm().item()
            assert norm == pytest.approx(1, abs=1e-6)


def test_what_an_embedding_does_not_need_is_not_computed(both, monkeypatch):
    engine = another(both[0])
    seen = []
    real = engine.model.hidden_states

    def hidden_states(embeddings, positions, attend, rows=None):
        seen.append(len(rows))
        return real(embeddings, positions, attend, rows)

    monkeypatch.setattr(engine.model, "hidden_states", hidden_states)
    case = CASES[3]
    limit = engine.model.config.text.context_length
    # The same medium again and again: more than a context holds, and one pass of the tower.
    ids = [*case.ids[:6], *([IMAGE] * case.visuals[0].tokens) * (limit + 1)]
    long = (case.visuals[0],) * (limit + 1)
    assert case.visuals[0].tokens == 1
    tower, whole = (
        next(iter(engine.generate([Request("t", *what, mode="embed", pool="vision_tower")])))
        for what in ((ids, long), (case.ids, case.visuals))
    )
    assert tower.error is whole.error is None
    assert tower.prompt_tokens > limit
    assert seen == []
    stats = engine.stats()
    # Of the second request, the first medium is kept from the one before.
    assert stats.visual_tokens == sum(visual.tokens for visual in case.visuals)
    assert (stats.prompt_tokens, stats.pages_peak) == (0, 0)
    for pool in ("last", "visual_tokens"):
        request = Request(pool, case.ids, case.visuals, mode="embed", pool=pool)
        next(iter(engine.generate([request])))
    assert seen == [1, sum(visual.tokens for visual in case.visuals)]


@pytest.mark.parametrize("options", SHARE)
def test_many_continuations_go_through_bounded_prefills(both, options, monkeypatch):
    """The prompt's beginning is computed once, and no pass holds more tokens than it may."""
    case = prompt(5, MEDIA[2], words=40)
    candidates = [[(7 * i + j) % 400 for j in range(3 + i % 9)] for i in range(60)]
    bound = len(case.ids) + 50
    request = Request("s", case.ids, case.visuals, mode="score", continuations=candidates)
    (want,) = both[0].generate([request])
    engine = another(both[0], prefill_tokens=bound, **options)
    sizes = []
    real = engine.model.hidden_states

    def hidden_states(embeddings, *rest):
        sizes.append(len(embeddings))
        return real(embeddings, *rest)

    monkeypatch.setattr(engine.model, "hidden_states", hidden_states)
    others = [Request(f"g{i}", c.ids, c.visuals) for i, c in enumerate(CASES)]
    found = {c.id: c for c in engine.generate([others[0], request, *others[1:]])}
    assert len(sizes) > 3
    assert max(sizes) <= max(bound, *(len(one.ids) for one in CASES))
    for score, expected in zip(found["s"].scores, want.scores, strict=True):
        assert score.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    stats = engine.stats()
    assert stats.finished == 1 + len(others)
    assert (stats.rows, stats.pages_in_use) == (0, 0)
    if "share_prefixes" not in options:
        assert stats.reused_tokens >= len(case.ids) - 16
        assert stats.visual_tokens == sum(v.tokens for c in (case, *CASES) for v in c.visuals)


def test_a_score_request_that_is_cancelled_between_its_prefills(both):
    case = CASES[1]
    engine = another(both[0], prefill_tokens=len(case.ids) + 4)
    asked = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    engine.add(Request("s", case.ids, case.visuals, mode="score", continuations=asked))
    assert engine.step() == []
    assert engine.cancel("s")
    (done,) = engine.step()
    assert (done.finish_reason, len(done.scores)) == ("cancelled", 1)
    assert engine.stats().pages_in_use == 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", [{}, {"page_size": 4, "cache_tokens": 2000}])
def test_memory_that_runs_out_changes_no_score_and_no_embedding(both, options, monkeypatch):
    requests = [
        Request(f"s{i}", c.ids, c.visuals, mode="score", continuations=CONTINUATIONS)
        for i, c in enumerate(CASES)
    ] + [
        Request(f"e{i}{pool}", c.ids, c.visuals, mode="embed", pool=pool)
        for i, c in enumerate(CASES)
        for pool in ("last", "mean", *(("visual_tokens", "vision_tower") if c.visuals else ()))
    ]
    want = {r.id: next(iter(both[0].generate([r]))) for r in requests}
    engine = another(both[0], batch_rows=4, prefill_tokens=90, **options)
    cache, struck = engine._core.cache, []
    draw = random.Random(3)

    def faulty(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            # So far apart that no request meets two of them alone.
            now = engine.stats().steps
            if now - (struck[-1][0] if struck else -9) < 6 or draw.random() > 0.2:
                return real(*args, **kwargs)
            struck.append((now, name))
            if draw.random() < 0.5:
                raise MemoryError
            real(*args, **kwargs)
            raise MemoryError

        monkeypatch.setattr(owner, name, call)

    faulty(engine.model_runner, "prefill")
    faulty(engine.model_runner, "_encode")
    faulty(engine.model, "logits")
    faulty(cache, "publish")
    for _ in range(3):
        draw.shuffle(requests)
        found = {c.id: c for c in engine.generate(requests)}
        assert found.keys() == want.keys()
        for name, done in found.items():
            assert done.error is None
            if done.embedding is not None:
                assert relative(done.embedding, torch.tensor(want[name].embedding)) < 1e-5
            for score, expected in zip(done.scores, want[name].scores, strict=True):
                assert score.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert len(struck) > 8
    assert len({name for _, name in struck}) >= 3
    assert engine.stats().pages_in_use == engine.stats().failed == 0


def test_requests_that_contradict_themselves(both):
    engine = both[0]
    top = engine.model.config.text.vocab_size
    limit = engine.model.config.text.context_length
    bad = {
        "none": Request("none", [1, 2], mode="score"),
        "both": Request("both", [1, 2], continuations=[[3]]),
        "mode": Request("mode", [1, 2], mode="sing"),
        "id": Request("id", [1, 2], mode="score", continuations=[[3], [top]]),
        "long": Request("long", [1, 2], mode="score", continuations=[[3] * limit]),
        "names": Request("names", [1, 2], media_names=("x",)),
        "pool": Request("pool", [1, 2], mode="embed", pool="all"),  # type: ignore[arg-type]
        "blind": Request("blind", [1, 2], mode="embed", pool="visual_tokens"),
        "tower": Request("tower", [1, 2], mode="embed", pool="vision_tower"),
    }
    found = {c.id: c.error for c in engine.generate(bad.values())}
    assert found == {
        "none": "mode is score, and there are no continuations",
        "both": "mode is generate, and there are continuations",
        "mode": "mode is 'sing', expected generate, score or embed",
        "id": f"a continuation holds a token id outside 0..{top - 1}",
        "long": f"the prompt has 2 tokens and a continuation {limit}, and the model's context is "
        f"{limit}",
        "names": "there are 1 media names, and 0 media",
        "pool": "pool is 'all', expected last, mean, visual_tokens or vision_tower",
        "blind": "pool is visual_tokens, and there are no media",
        "tower": "pool is vision_tower, and there are no media",
    }
    assert engine.unfinished == 0
    whole = Request("whole", [1] * limit, mode="embed")
    (done,) = engine.generate([whole])
    assert done.error is None
