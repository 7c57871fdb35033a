"""Scores and embeddings equal those of the reference's forward pass."""

import pytest
import torch

from model.engine import Engine, Request
from model.sampling import Sampling
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


@pytest.mark.parametrize("normalize", [False, True])
def test_embeddings_equal_the_references(both, normalize):
    engine, reference = both
    requests = [
        Request(str(i), case.ids, case.visuals, mode="embed", normalize=normalize)
        for i, case in enumerate(CASES)
    ]
    answers = [Request(f"g{i}", c.ids, c.visuals) for i, c in enumerate(CASES)]
    found = {c.id: c for c in engine.generate([*answers, *requests])}
    for number, case in enumerate(CASES):
        _, hidden = reference_pass(reference, case)
        visual = torch.tensor([token in (IMAGE, VIDEO) for token in case.ids])
        got = found[str(number)].embedding
        for name, rows in (
            ("last", hidden[-1:]),
            ("text", hidden[~visual]),
            ("visual", hidden[visual]),
        ):
            vector = getattr(got, name)
            if not len(rows):
                assert vector is None
                continue
            want = rows.mean(0)
            if normalize:
                want = want / want.norm()
                assert torch.tensor(vector).norm().item() == pytest.approx(1, abs=1e-5)
            assert vector == pytest.approx(want.tolist(), abs=2e-4)
        assert found[str(number)].output_ids == []


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
    }
    assert engine.unfinished == 0
    whole = Request("whole", [1] * limit, mode="embed")
    (done,) = engine.generate([whole])
    assert done.error is None
