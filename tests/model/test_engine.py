"""The engine: tokens equal the reference's, and a batch equals each request alone."""

import random
from dataclasses import replace

import pytest
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.sampling import Sampling
from tests import oracle
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.prompts import IMAGE, MEDIA, VIDEO, pixels, prompt, token_types

NEW = 12
NEVER = 10**6  # an end token that no vocabulary has


FOLDERS = [
    "embedded",
    "untied, sharded",
    "2B's heads",
    "nested, names of 5.x",
    "sliding window",
    "yarn",
]


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPES[request.param], seed=7)


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.load(folder, device="cpu", mrope="hf5")


@pytest.fixture(scope="module")
def reference(folder):
    return oracle.load_model(folder)


def request_of(case, name="r", **sampling):
    return Request(name, case.ids, case.visuals, Sampling(max_new_tokens=NEW, **sampling))


def reference_answer(reference, case, **options):
    """What the reference's generate returns, and the ids that follow the prompt in it."""
    ids = torch.tensor([case.ids])
    out = reference.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=token_types(ids),
        **pixels([case], "image"),
        **pixels([case], "video"),
        **{"max_new_tokens": NEW, "do_sample": False} | options,
        return_dict_in_generate=True,
    )
    return out, out.sequences[0, ids.shape[1] :].tolist()


CASES = [prompt(100 + i, media) for i, media in enumerate(MEDIA)]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens_equal_the_references(reference, engine, penalty):
    for case in CASES:
        (completion,) = engine.generate([request_of(case, repetition_penalty=penalty)])
        _, expected = reference_answer(reference, case, repetition_penalty=penalty)
        assert completion.output_ids == expected
        assert completion.prompt_tokens == len(case.ids)


def test_end_tokens_and_min_new_tokens_equal_the_references(reference, engine):
    """Tokens of the free answer become end tokens, so that they come early and are held back."""
    for case in CASES[:4]:
        _, free = reference_answer(reference, case, repetition_penalty=1.2, eos_token_id=[NEVER])
        ends = sorted({free[2], free[5]})
        lengths = set()
        for least in (0, 1, 4, 7, NEW):
            wish = {"repetition_penalty": 1.2, "min_new_tokens": least}
            request = request_of(case, eos_token_ids=tuple(ends), **wish)
            (completion,) = engine.generate([request])
            _, expected = reference_answer(reference, case, eos_token_id=ends, **wish)
            assert completion.output_ids == expected
            assert completion.finish_reason == ("stop" if expected[-1] in ends else "length")
            lengths.add(len(expected))
        assert len(lengths) > 1
        assert max(lengths) == NEW


def test_sampling_that_leaves_one_token_equals_the_references(reference, engine):
    """As the published files do: do_sample with top_k 1, or a nucleus of nothing."""
    case = CASES[2]
    for wish in (
        {"temperature": 0.01, "top_k": 1, "top_p": 0.001},
        {"temperature": 1.7, "top_k": 1},
        {"temperature": 0.8, "top_k": 0, "top_p": 1e-6},
        {"temperature": 0.8, "top_k": 0, "min_p": 1.0},
        {"temperature": 1.0, "top_k": 1, "repetition_penalty": 1.5, "min_new_tokens": 5},
    ):
        (completion,) = engine.generate([request_of(case, seed=3, **wish)])
        _, expected = reference_answer(reference, case, do_sample=True, **wish)
        assert completion.output_ids == expected


def test_log_probabilities_equal_the_references(reference, engine):
    for case in CASES[:4]:
        wish = {"repetition_penalty": 1.3, "eos_token_ids": ()}
        (completion,) = engine.generate([request_of(case, logprobs=3, **wish)])
        out, expected = reference_answer(
            reference, case, repetition_penalty=1.3, eos_token_id=[NEVER], output_logits=True
        )
        assert completion.output_ids == expected
        raw = torch.cat(out.logits).float().log_softmax(-1)
        chosen = raw.gather(1, torch.tensor(expected)[:, None])[:, 0]
        assert completion.logprobs == pytest.approx(chosen.tolist(), abs=1e-4)
        assert completion.mean_logprob == pytest.approx(chosen.mean().item(), abs=1e-4)
        best = raw.topk(3)
        assert len(completion.top_logprobs) == NEW
        for top, values, ids in zip(
            completion.top_logprobs, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            assert [token for token, _ in top] == ids
            assert [value for _, value in top] == pytest.approx(values, abs=1e-4)


def test_stop_strings_end_answers_where_the_reference_ends_them(folder, reference, engine):
    tokenizer = oracle.load_tokenizer(folder)
    inside = spanning = 0
    for case in CASES[:5]:
        (free,) = engine.generate([request_of(case, eos_token_ids=())])
        text = tokenizer.decode(free.output_ids)
        pieces = [tokenizer.decode([token]) for token in free.output_ids]
        stops = [
            (pieces[3],),
            (pieces[4][-1:] + pieces[5][:1], "never said at all"),
            ("no such text, longer than any answer " * 9,),
            (text[len(text) // 2 :][:3], pieces[7]),
        ]
        for stop in stops:
            if any("\ufffd" in one or not one for one in stop):
                continue
            request = request_of(case, eos_token_ids=(), stop=stop)
            (completion,) = engine.generate([request])
            _, expected = reference_answer(
                reference, case, eos_token_id=[NEVER], stop_strings=list(stop), tokenizer=tokenizer
            )
            if not any(one in tokenizer.decode(expected) for one in stop) and len(expected) < NEW:
                # There the string begins in the prompt, which is not looked at here.
                spanning += 1
                continue
            assert completion.output_ids == expected
            if completion.stop is None:
                assert completion.finish_reason == "length"
            else:
                assert completion.finish_reason == "stop"
                assert completion.stop in stop
                inside += not tokenizer.decode(expected).endswith(completion.stop)
            assert (completion.stop is None) == (not any(one in text for one in stop))
    assert inside, "no string ended inside a token"
    assert spanning < 5


def test_pad_tokens_in_an_answer_are_tokens_like_others(engine):
    """All ids are equally likely here."""
    case = prompt(600, MEDIA[1])
    wish = {"temperature": 1e30, "top_k": 0, "eos_token_ids": ()}
    requests = [request_of(case, str(seed), seed=seed, **wish) for seed in range(120)]
    said = {token for c in engine.generate(requests) for token in c.output_ids}
    assert {IMAGE, VIDEO} <= said


def test_stop_strings_need_a_tokenizer(engine):
    bare = Engine(engine.model, engine.rules, engine.defaults)
    case = CASES[1]
    requests = [request_of(case, "stop", stop=("x",)), request_of(case, "free")]
    stop, free = bare.generate(requests)
    assert stop.error == "the request has stop strings, and the engine has no tokenizer"
    assert free.error is None


def test_drawn_answers_do_not_depend_on_the_batch(engine):
    """Different filters, seeds and lengths; greedy rows among them; shuffled, in other batches."""
    cases = [prompt(500 + i, MEDIA[i % len(MEDIA)], words=2 + i % 7) for i in range(18)]
    filters = [{"top_k": 0}, {"top_k": 9}, {"top_k": 0, "top_p": 0.8}, {"min_p": 0.05}]
    requests = [
        request_of(
            case,
            str(i),
            temperature=[0.0, 2.0, 5.0, 10.0][i % 4],
            repetition_penalty=[1.0, 1.2][i % 2],
            seed=i // 2,
            **filters[i % 3],
        )
        for i, case in enumerate(cases)
    ]
    alone = {r.id: next(iter(engine.generate([r]))) for r in requests}
    for batch_rows, seed in ((5, 0), (18, 1)):
        random.Random(seed).shuffle(requests)
        engine.batch_rows = batch_rows
        for completion in engine.generate(iter(requests)):
            assert completion.output_ids == alone[completion.id].output_ids
    drawn = requests[0]
    others = [
        replace(drawn, id=str(s), sampling=replace(drawn.sampling, seed=s)) for s in range(90, 96)
    ]
    others = [replace(r, sampling=replace(r.sampling, temperature=20.0, top_k=0)) for r in others]
    assert len({tuple(c.output_ids) for c in engine.generate(others)}) == 6


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
    limit = engine.model.config.text.context_length
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


def test_a_length_that_only_the_file_bounds_counts_the_prompt(engine):
    bounded = Engine(engine.model, engine.rules, replace(engine.defaults, max_length=20))
    wish = Sampling(max_new_tokens=None, eos_token_ids=())
    short, long = bounded.generate(
        [Request("s", [1] * 14, (), wish), Request("l", [1] * 20, (), wish)]
    )
    assert {short.id: len(short.output_ids), long.id: len(long.output_ids)} == {"s": 6, "l": 0}
    error = short.error or long.error
    assert error == (
        "the prompt has 20 tokens, and generation_config.json allows 20 together with the answer; "
        "expected fewer, or max_new_tokens"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dtype": "int8"}, "dtype is 'int8', expected auto, float32, bfloat16 or float16"),
        ({"mrope": "hf4"}, "mrope is 'hf4', expected original or hf5"),
        ({"attention": "magic"}, "magic"),
    ],
)
def test_arguments_of_load_that_do_not_exist(folder, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Engine.load(folder, device="cpu", **arguments)


def test_generation_never_passes_the_context(engine):
    limit = engine.model.config.text.context_length
    ids = [i % 500 for i in range(limit - 3)]
    request = Request("r", ids, (), Sampling(max_new_tokens=50, eos_token_ids=()))
    (completion,) = engine.generate([request])
    assert len(completion.output_ids) == 3
    assert completion.finish_reason == "length"
