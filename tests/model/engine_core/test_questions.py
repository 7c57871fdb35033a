"""Consecutive prompts with a common prefix: it is computed once."""

import random
from dataclasses import replace

import pytest

from mediamill.model.engine import Engine, Request
from mediamill.model.sampling import Sampling
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.prompts import IMAGE, MEDIA, prompt

CACHES = [{}, {"page_size": 4}, {"page_size": 16}]


@pytest.fixture(scope="module", params=["untied", "sliding window"])
def plain(request, tmp_path_factory):
    """An engine that shares nothing."""
    shape = next(shape for name, shape in SHAPES.items() if name.startswith(request.param))
    folder = write_checkpoint(tmp_path_factory.mktemp("questions"), shape, seed=9)
    return Engine.load(folder, device="cpu", mrope="hf5", share_prefixes=False)


def sharing(plain, **options):
    return Engine(plain.model, plain.rules, plain.defaults, **options)


def ask(name, ids, visuals=(), new=4, **options):
    sampling = Sampling(max_new_tokens=new, eos_token_ids=(), repetition_penalty=1.0, logprobs=2)
    return Request(name, ids, visuals, sampling, **options)


def alone(plain, requests):
    return {one.id: next(iter(plain.generate([one]))) for one in requests}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, one in found.items():
        assert one.output_ids == expected[name].output_ids, name
        assert one.logprobs == pytest.approx(expected[name].logprobs, abs=1e-4), name


def questions_of(rng, number):
    """Some questions about the same media, which differ from different tokens on."""
    case = prompt(50 + number, rng.choice(MEDIA), words=rng.choice([2, 6, 20]))
    ends = [[rng.randrange(500) for _ in range(rng.randrange(1, 12))] for _ in range(4)]
    ends.append([*ends[0][:-1], 7])
    ends.append(ends[0])
    return [
        ask(f"{number}-{place}", case.ids + end, case.visuals, rng.randrange(1, 6))
        for place, end in enumerate(rng.sample(ends, rng.randrange(2, 6)))
    ]


@pytest.mark.parametrize("options", CACHES)
def test_each_question_is_answered_as_it_is_alone(plain, options):
    rng = random.Random(str(options))
    requests = [one for number in range(9) for one in questions_of(rng, number)]
    scored = prompt(90, MEDIA[1], words=20)
    texts = [[5, 6, 7], [9], [8, 8]]
    for at, mode in ((3, "score"), (20, "generate"), (30, "embed")):
        more = {"mode": mode, "continuations": texts} if mode == "score" else {"mode": mode}
        requests.insert(at, ask(f"{mode}-{at}", scored.ids, scored.visuals, **more))
    expected = alone(plain, requests)
    for rows in (1, 3, 16):
        engine = sharing(plain, batch_rows=rows, **options)
        found = {one.id: one for one in engine.generate(requests)}
        assert_same(found, expected)
        assert found["score-3"].scores[0].total == pytest.approx(
            expected["score-3"].scores[0].total, abs=1e-4
        )
        assert found["embed-30"].embedding == pytest.approx(
            expected["embed-30"].embedding, abs=1e-4
        )
        assert engine.stats().pages_in_use == 0


@pytest.mark.parametrize("options", CACHES)
@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_a_picture_is_encoded_once_however_its_questions_fall_into_steps(plain, options, rows):
    cases = [prompt(70 + i, [("image", (1, 6, 8)), ("video", (2, 4, 4))]) for i in range(5)]
    requests = [
        ask(f"{i}-{k}", [*case.ids, 30 + k, k], case.visuals)
        for i, case in enumerate(cases)
        for k in range(3)
    ]
    engine = sharing(plain, batch_rows=rows, **options)
    assert_same({one.id: one for one in engine.generate(requests)}, alone(plain, requests))
    stats = engine.stats()
    assert stats.visual_tokens == 5 * (12 + 8)
    assert stats.prompt_tokens + stats.reused_tokens == sum(len(r.input_ids) for r in requests)
    if rows >= 15:
        assert stats.reused_tokens == 2 * sum(len(case.ids) for case in cases)
    assert len(engine.model_runner._encoder_cache) <= 2
    engine.reset()
    assert not engine.model_runner._encoder_cache


def test_pictures_of_one_size_are_not_taken_for_each_other(plain):
    first, second = (prompt(seed, [("image", (1, 8, 8))], words=1) for seed in (5, 6))
    words = [token for token in first.ids if token != IMAGE]
    assert len(first.ids) > 2 * len(words)
    requests = [
        ask("a", first.ids, first.visuals),
        ask("b", first.ids, second.visuals),
        ask("named", first.ids, first.visuals, media_names=("one",)),
        ask("other", first.ids, second.visuals, media_names=("two",)),
    ]
    engine = sharing(plain)
    found = {one.id: one for one in engine.generate(requests)}
    assert_same(found, alone(plain, requests))
    assert engine.stats().visual_tokens == 4 * 16
    assert engine.stats().reused_tokens == 0


def test_a_prefill_that_runs_out_of_memory_is_tried_with_fewer_rows(plain, monkeypatch):
    import torch

    case = prompt(8, [("image", (1, 8, 8))], words=8)
    requests = [ask(str(i), [*case.ids, i, 5], case.visuals) for i in range(6)]
    engine = sharing(plain)
    hidden_states, failed = engine.model.hidden_states, []

    def short(embeddings, *rest, **options):
        if len(embeddings) > len(case.ids) + 4:
            failed.append(len(embeddings))
            raise torch.OutOfMemoryError("injected")
        return hidden_states(embeddings, *rest, **options)

    monkeypatch.setattr(engine.model, "hidden_states", short)
    found = {one.id: one for one in engine.generate(requests)}
    monkeypatch.undo()
    assert failed
    assert_same(found, alone(plain, requests))
    assert engine.stats().shortages == len(failed)
    (again,) = engine.generate([replace(requests[0], id="again")])
    assert again.output_ids == found["0"].output_ids
