"""The engine: greedy tokens equal the reference's, and a batch equals each request alone."""

import random
from dataclasses import replace

import pytest
import torch

from model.config import load_config
from model.engine import Engine, Request
from model.sampling import Sampling
from model.weights import load_model
from tests import oracle
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.prompts import MEDIA, pixels, prompt, token_types

NEW = 12


@pytest.fixture(scope="module", params=["embedded", "untied, sharded", "2B's heads"])
def folder(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPES[request.param], seed=7)


@pytest.fixture(scope="module")
def engine(folder):
    engine = Engine.load(folder, device="cpu")
    engine.model = load_model(folder, torch.float32, config=load_config(folder, "hf5"))
    return engine


def request_of(case, name="r", **sampling):
    return Request(name, case.ids, case.visuals, Sampling(max_new_tokens=NEW, **sampling))


def reference_tokens(reference, case, **options):
    ids = torch.tensor([case.ids])
    out = reference.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=token_types(ids),
        **pixels([case], "image"),
        **pixels([case], "video"),
        max_new_tokens=NEW,
        do_sample=False,
        **options,
    )
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_equal_the_references(folder, engine, penalty):
    reference = oracle.load_model(folder)
    for i, media in enumerate(MEDIA):
        if any(t > max(h, w) // 2 for _, (t, h, w) in media):
            # After such a video the reference goes on from another position than its own
            # forward pass says.
            continue
        case = prompt(100 + i, media)
        (completion,) = engine.generate([request_of(case, repetition_penalty=penalty)])
        assert completion.output_ids == reference_tokens(
            reference, case, repetition_penalty=penalty
        )
        assert completion.prompt_tokens == len(case.ids)


def test_a_batch_equals_each_request_alone_in_any_order(engine):
    cases = [prompt(200 + i, MEDIA[i % len(MEDIA)], words=2 + i % 9) for i in range(24)]
    requests = [request_of(case, str(i)) for i, case in enumerate(cases)]
    # Different lengths, so that rows leave the batch one after the other.
    requests = [
        replace(r, sampling=Sampling(max_new_tokens=1 + 5 * i % 17)) for i, r in enumerate(requests)
    ]
    alone = {r.id: next(iter(engine.generate([r]))) for r in requests}
    random.Random(0).shuffle(requests)
    engine.batch_rows = 10
    together = {c.id: c for c in engine.generate(iter(requests))}
    assert together.keys() == alone.keys()
    for name, completion in together.items():
        assert completion.output_ids == alone[name].output_ids
        assert completion.finish_reason == alone[name].finish_reason
        assert completion.mean_logprob == pytest.approx(alone[name].mean_logprob, abs=1e-4)
    assert len({tuple(c.output_ids) for c in alone.values()}) > 12, "the requests must differ"


def test_generation_stops_at_an_end_token_and_keeps_it(engine):
    case = prompt(300, MEDIA[1])
    (free,) = engine.generate([request_of(case, eos_token_ids=())])
    assert free.finish_reason == "length"
    assert len(free.output_ids) == NEW
    end = free.output_ids[4]
    first = free.output_ids.index(end)
    (stopped,) = engine.generate([request_of(case, eos_token_ids=(end,))])
    assert stopped.output_ids == free.output_ids[: first + 1]
    assert stopped.finish_reason == "stop"


def test_requests_that_cannot_be_answered_fail_alone(engine):
    good = prompt(400, MEDIA[1])
    limit = engine.model.config.text.max_position_embeddings
    bad = {
        "empty": Request("empty", []),
        "too long": Request("too long", [1] * limit),
        "no picture": Request("no picture", good.ids),
        "no pads": Request("no pads", [1, 2, 3], good.visuals),
        "unknown id": Request("unknown id", [1, 10**6]),
    }
    completions = {c.id: c for c in engine.generate([*bad.values(), request_of(good, "good")])}
    assert completions.keys() == {*bad, "good"}
    assert completions["good"].finish_reason != "error"
    expected = {
        "empty": "the prompt is empty",
        "too long": f"the prompt has {limit} tokens, and the model's context is {limit}",
        "no picture": "the prompt has 9 image tokens, and its images have 0",
        "no pads": "the prompt has 0 image tokens, and its images have 9",
        "unknown id": "the prompt holds a token id outside 0..519",
    }
    assert {name: completions[name].error for name in bad} == expected


def test_generation_never_passes_the_context(engine):
    limit = engine.model.config.text.max_position_embeddings
    ids = [i % 500 for i in range(limit - 3)]
    request = Request("r", ids, (), Sampling(max_new_tokens=50, eos_token_ids=()))
    (completion,) = engine.generate([request])
    assert len(completion.output_ids) == 3
    assert completion.finish_reason == "length"
