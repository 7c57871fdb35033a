"""Answers that are held to a JSON schema: valid, whatever the network, batch and fault."""

import json
import random
from dataclasses import replace

import jsonschema
import pytest
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.engine_core import engine_core
from mediamill.model.generation import chooser
from mediamill.model.sampling import Sampling
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.model.tiny import CHECKPOINT
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.json_schemas import SCHEMAS, closed, text
from tests.model.prompts import MEDIA, prompt

LONGEST = 160
CASES = [prompt(70 + i, MEDIA[i % 4], words=3 + i) for i in range(6)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(CHECKPOINT)


@pytest.fixture(scope="module", params=["trained", "random"])
def base(request, tmp_path_factory):
    if request.param == "trained":
        return Engine.load(CHECKPOINT, device="cpu")
    folder = write_checkpoint(tmp_path_factory.mktemp("json"), SHAPES["one key-value head"], 7)
    return Engine.load(folder, device="cpu")


def another(base, **options):
    return Engine(
        base.model, base.rules, base.defaults, load_tokenizer=base._constraints._load, **options
    )


def asked(name, number, schema=True, **options):
    case = CASES[number % len(CASES)]
    wish = {"max_new_tokens": LONGEST, "top_k": 0, "top_p": 1.0, "seed": number, **options}
    found = text(SCHEMAS[name]) if schema else None
    return Request(f"{name} {number}", case.ids, case.visuals, Sampling(**wish, json_schema=found))


def mixed(count):
    """Some of them free, some that stop early in one of several ways."""
    rng = random.Random(count)
    names = list(SCHEMAS)
    return [
        asked(
            names[number % len(names)],
            number,
            schema=number % 4 != 1,
            max_new_tokens=rng.choice([5, 30, 60]),
            temperature=rng.choice([0.0, 1.5]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            min_new_tokens=rng.choice([0, 3]),
            top_k=rng.choice([0, 1, 5, 200]),
            top_p=rng.choice([1.0, 0.8]),
            min_p=rng.choice([0.0, 0.1]),
            stop=rng.choice([None, ('"',)]),
        )
        for number in range(count)
    ]


def told(completion):
    return (completion.output_ids, completion.finish_reason, completion.error)


def test_whole_answers_are_valid(base, tokenizer):
    """Thirty schemas, the likeliest tokens and drawn ones, all in one batch."""
    requests = [asked(name, 0, temperature=0.0) for name in SCHEMAS]
    requests += [asked(name, 1 + i, temperature=1.5) for name in SCHEMAS for i in range(4)]
    whole, differ = dict.fromkeys(SCHEMAS, 0), set()
    for done in base.generate(requests):
        name = done.id.rpartition(" ")[0]
        assert done.finish_reason in ("stop", "length"), done.error
        assert done.finish_reason == "stop" or len(done.output_ids) == LONGEST
        if done.finish_reason == "stop":
            whole[name] += 1
            answer = tokenizer.decode(done.output_ids)
            jsonschema.validate(json.loads(answer), SCHEMAS[name])
            differ.add(answer)
    assert sum(whole.values()) > 0.8 * len(requests)
    endless = {"open number", "share", "beyond", "part of a text", "a tree"}
    assert {name for name, count in whole.items() if count < 5} <= endless
    assert len(differ) > 60


@pytest.mark.parametrize("options", [{}, {"page_size": 4, "cache_tokens": 3000, "batch_rows": 5}])
def test_a_batch_answers_as_each_request_alone(base, options):
    requests = mixed(28)
    alone = {one.id: one for request in requests for one in base.generate([request])}
    for found in another(base, **options).generate(reversed(requests)):
        assert told(found) == told(alone[found.id])
        assert found.logprobs == pytest.approx(alone[found.id].logprobs, abs=1e-4)


def test_free_rows_are_not_touched_by_those_beside_them(base):
    """Bit for bit: the same batches, where other rows have a schema or none."""
    wish = {"max_new_tokens": 12, "eos_token_ids": ()}  # so that the batches are of one size
    free = [asked("text", i, schema=False, **wish) for i in range(4)]
    beside = [asked("nested", 10 + i, **wish) for i in range(4)]
    plain = [asked("nested", 10 + i, schema=False, **wish) for i in range(4)]
    mine = {one.id: one for one in another(base).generate([*free, *beside])}
    theirs = {one.id: one for one in another(base).generate([*free, *plain])}
    for request in free:
        assert mine[request.id] == theirs[request.id]


def test_log_probabilities_are_the_networks_own(base):
    """The first token is held to an opening brace, which the network holds unlikely."""
    request = asked("enum", 0, temperature=1.5)
    (held,) = base.generate([request])
    first = Sampling(max_new_tokens=1, logprobs=520)
    (free,) = base.generate([Request("free", request.input_ids, request.visuals, first)])
    own = dict(free.top_logprobs[0])
    assert held.logprobs[0] == pytest.approx(own[held.output_ids[0]], abs=1e-4)


def test_memory_that_runs_out_changes_no_answer(base, monkeypatch):
    requests = mixed(20)
    alone = {one.id: one for request in requests for one in base.generate([request])}
    engine = another(base, page_size=4, cache_tokens=2000, batch_rows=4)
    rng, last, struck = random.Random(2), [-9], []

    def faulty(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            now = engine.stats().steps
            if now - last[0] < 3 or rng.random() > 0.2:
                return real(*args, **kwargs)
            last[0] = now
            struck.append(name)
            if rng.random() < 0.5:
                real(*args, **kwargs)
            raise torch.OutOfMemoryError("injected")

        monkeypatch.setattr(owner, name, call)

    faulty(engine.model_runner, "prefill")
    faulty(engine.model_runner, "decode")
    faulty(engine.model_runner.token_bitmask, "of")
    faulty(chooser.Chooser, "choose")
    faulty(engine_core, "_read")
    for _ in range(2):
        rng.shuffle(requests)
        for found in engine.generate(requests):
            assert told(found) == told(alone[found.id])
    assert len(struck) > 10
    assert len(set(struck)) >= 4


def test_a_cancelled_answer_is_a_beginning(base):
    engine = another(base)
    request = asked("nested", 1)
    (whole,) = base.generate([request])
    engine.add(request)
    for _ in range(4):
        assert not engine.step()
    assert engine.cancel(request.id)
    (done,) = engine.step()
    assert done.finish_reason == "cancelled"
    assert done.output_ids == whole.output_ids[: len(done.output_ids)]
    assert done.output_ids


def test_answers_end_where_the_json_does(base, tokenizer):
    """Also without end tokens, before min_new_tokens, and at a stop string within."""
    (done,) = base.generate([asked("one value", 0, eos_token_ids=(), min_new_tokens=100)])
    assert done.finish_reason == "stop"
    assert tokenizer.decode(done.output_ids) == '{"a": "only", "b": {"deep": [1, null]}}'
    (cut,) = base.generate([asked("one value", 0, stop=("deep",))])
    assert (cut.finish_reason, cut.stop) == ("stop", "deep")
    short = asked("one value", 0, max_new_tokens=3)
    (left,) = base.generate([short])
    assert (left.finish_reason, len(left.output_ids)) == ("length", 3)


def test_an_end_token_ends_what_might_go_on(base, tokenizer):
    """A number at the top is whole at each digit; the network decides how many there are."""
    wish = Sampling(max_new_tokens=40, json_schema=text({"type": "integer"}))
    asked = [
        Request(str(i), CASES[0].ids, CASES[0].visuals, replace(wish, temperature=1.5, seed=i))
        for i in range(40)
    ]
    ended = 0
    for done in base.generate(asked):
        assert done.error is None
        int(tokenizer.decode(done.output_ids))
        ended += done.finish_reason == "stop" and done.output_ids[-1] in (506, 508)
    assert ended > 3


def test_what_cannot_be_followed_is_answered_alone(base):
    bad = Request("bad", [1, 2], (), Sampling(json_schema=text(closed(a={"not": {}}))))
    none = Request("none", [1, 2], (), Sampling(json_schema="[1"))
    good = asked("enum", 0)
    found = {one.id: one for one in base.generate([bad, none, good])}
    assert found["bad"].error == (
        'json_schema: answers cannot be held to it: Unimplemented keys: ["not"]'
    )
    assert "Expecting" in found["none"].error
    assert found[good.id].finish_reason == "stop"
    lone = Engine(base.model, base.rules, base.defaults)
    (refused,) = lone.generate([good])
    assert refused.error == "the request has a JSON schema, and the engine has no tokenizer"


def test_a_parser_at_its_bounds_ends_that_row_alone(base, monkeypatch):
    """What the library gives up is an error with its reason, and no other row's."""
    engine = another(base)
    for request in (asked("nested", 0), asked("enum", 1)):
        engine.add(request)
    engine.step()
    row = next(one for one in engine._core.running.sequences if one.request.id == "nested 0")
    row.matcher.inner.consume_token(3)  # leaves it in an error, as a bound does
    found = {one.id: one for one in engine.drain()}
    assert found["nested 0"].finish_reason == "error"
    assert found["nested 0"].error.startswith("json_schema: the answer cannot be held to it: ")
    assert found["enum 1"].finish_reason == "stop"


@pytest.mark.parametrize("wrong", [3, {"type": "object"}, b"{}"])
def test_a_schema_is_given_as_text(wrong):
    with pytest.raises(ValueError, match="expected a text"):
        Sampling(json_schema=wrong)
