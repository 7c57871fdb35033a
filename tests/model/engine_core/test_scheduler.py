"""Sequences come and go at every step, first come, first served; a failed step leaves no trace."""

import random

import pytest
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.engine_core import engine_core
from mediamill.model.engine_core.scheduler import OomBackoff
from mediamill.model.generation import chooser
from mediamill.model.sampling import Sampling
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.prompts import MEDIA, prompt

CASES = [prompt(40 + i, media, words=3 + i) for i, media in enumerate(MEDIA)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("sched"), SHAPES["one key-value head"], 7)
    return Engine.load(folder, device="cpu")


def another(base, **options):
    return Engine(base.model, base.rules, base.defaults, **options)


def text(name, new, prompt_tokens=5, **options):
    ids = [(7 * i + len(name)) % 400 for i in range(prompt_tokens)]
    return Request(name, ids, (), Sampling(max_new_tokens=new, eos_token_ids=(), **options))


def mixed(count, seed):
    rng = random.Random(seed)
    requests = []
    for i in range(count):
        case = rng.choice(CASES)
        mode = rng.choice(["generate"] * 4 + ["score", "embed"])
        wish = Sampling(
            max_new_tokens=rng.randrange(1, 12),
            temperature=rng.choice([0.0, 4.0]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            min_new_tokens=rng.choice([0, 1]),
            top_k=0,
            seed=i,
        )
        more = [[3, 4, i], [i]] if mode == "score" else ()
        tail = [rng.randrange(500) for _ in range(rng.randrange(9))]
        ids = case.ids + tail
        requests.append(Request(str(i), ids, case.visuals, wish, mode, more))
    return requests


def same(one, other):
    assert (one.output_ids, one.finish_reason) == (other.output_ids, other.finish_reason)
    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    for mine, theirs in zip(one.scores, other.scores, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    if one.embedding is not None:
        assert one.embedding == pytest.approx(other.embedding, abs=1e-3)


def test_a_sequence_leaves_at_once_and_the_next_takes_its_place(base):
    engine = another(base, batch_rows=2)
    lengths = {"a": 6, "b": 2, "c": 3, "d": 1}
    for name, new in lengths.items():
        engine.add(text(name, new))
    seen, step = {}, 0
    while engine.unfinished:
        step += 1
        seen |= {done.id: step for done in engine.step()}
        assert engine.stats().rows <= 2
    # A prefill gives the first token, and its step another: b ends in step 1 and c begins in 2.
    assert seen == {"a": 5, "b": 1, "c": 3, "d": 4}
    assert engine.step() == []


def test_requests_are_pulled_as_slots_become_free(base):
    engine = another(base, batch_rows=3)
    pulled = []

    def source():
        for i in range(20):
            pulled.append(i)
            yield text(str(i), 4)

    answers = engine.generate(source())
    assert pulled == []
    for number, _ in enumerate(answers):
        assert len(pulled) <= number + 1 + 3 + 3
    assert len(pulled) == 20


def test_a_large_request_is_not_overtaken_by_later_small_ones(base):
    engine = another(base, page_size=4, cache_tokens=100, batch_rows=8)
    order = [("s1", 4), ("s2", 20), ("large", 90), *((f"t{i}", 2) for i in range(12))]
    for name, new in order:
        engine.add(text(name, new))
    done = [completion.id for completion in engine.drain()]
    assert done[:3] == ["s1", "s2", "large"]
    assert sorted(done) == sorted(name for name, _ in order)


@pytest.mark.parametrize("options", [{"page_size": 4}, {}])
def test_a_request_that_can_never_fit_is_refused_alone(base, options):
    engine = another(base, cache_tokens=100, **options)
    capacity = engine._core.cache.capacity
    found = {
        c.id: c for c in engine.generate([text("no", capacity - 4), text("yes", capacity - 5)])
    }
    assert found["no"].error == (
        f"prompt and answer need room for {capacity + 1} tokens, and the cache has {capacity}"
    )
    assert len(found["yes"].output_ids) == capacity - 5
    assert engine.stats().pages_in_use == 0


def test_prefills_stay_within_their_budgets(base, monkeypatch):
    engine = another(base, prefill_tokens=64, vision_patches=80, batch_rows=16)
    prefills, prefill = [], engine.model_runner.prefill

    def counted(scheduled, cache):
        # A prefix that several sequences share is computed once.
        shared = [0] * len(scheduled.sequences)
        for prefix in scheduled.shared_prefixes.values():
            for i in prefix.followers:
                shared[i] = prefix.tokens
        pairs = zip(scheduled.sequences, shared, strict=True)
        prefills.append([seq.patches_from(tokens) for seq, tokens in pairs])
        return prefill(scheduled, cache)

    monkeypatch.setattr(engine.model_runner, "prefill", counted)
    requests = mixed(40, 3)
    assert len(list(engine.generate(requests))) == 40
    for patches in prefills:
        if len(patches) > 1:
            # Shared prefixes are not counted, so the bound holds for what is computed.
            assert sum(patches) <= 80
    assert any(len(patches) > 1 for patches in prefills)
    assert any(len(patches) == 1 and patches[0] > 80 for patches in prefills)


def test_cancelled_requests_are_answered_with_what_they_have(base):
    engine = another(base, batch_rows=2)
    free = {c.id: c.output_ids for c in engine.generate([text(n, 9) for n in "abc"])}
    for name in "abc":
        engine.add(text(name, 9))
    assert engine.step() == []
    assert engine.cancel("a")
    assert engine.cancel("c")
    assert not engine.cancel("a")
    assert not engine.cancel("z")
    found = {c.id: c for c in engine.drain()}
    assert found["a"].finish_reason == found["c"].finish_reason == "cancelled"
    assert found["a"].output_ids == free["a"][:2]
    assert found["c"].output_ids == []
    assert (found["b"].finish_reason, found["b"].output_ids) == ("length", free["b"])
    stats = engine.stats()
    assert (stats.cancelled, stats.finished, stats.pages_in_use) == (2, 4, 0)


def test_an_id_in_use_is_refused_and_free_again_once_answered(base):
    engine = another(base)
    engine.add(text("a", 3))
    with pytest.raises(ValueError, match="'a' is not answered yet"):
        engine.add(text("a", 3))
    assert [c.id for c in engine.drain()] == ["a"]
    engine.add(text("a", 3))
    engine.reset()
    assert engine.unfinished == 0
    assert [c.id for c in engine.generate([text("a", 3)])] == ["a"]


def test_a_caller_who_stops_early_leaves_nothing_behind(base):
    engine = another(base, batch_rows=2)
    engine.add(text("mine", 4))
    for _ in engine.generate(text(str(i), 2 + i) for i in range(9)):
        break
    assert engine.unfinished <= 1
    assert [c.id for c in engine.drain()] in (["mine"], [])
    assert engine.stats().rows == engine.stats().pages_in_use == 0


def test_two_streams_at_once_get_their_own(base):
    engine = another(base, batch_rows=3)
    x, y = ([text(f"{name}{i}", 1 + i) for i in range(5)] for name in "xy")
    pairs = list(zip(engine.generate(x), engine.generate(y), strict=True))
    assert {c.id for c, _ in pairs} == {f"x{i}" for i in range(5)}
    assert {c.id for _, c in pairs} == {f"y{i}" for i in range(5)}
    assert engine.unfinished == 0


POINTS = ["prefill", "decode", "logits", "choose", "publish", "batch", "read", "join"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"page_size": 4, "cache_tokens": 900}, torch.OutOfMemoryError),
        ({"batch_rows": 6}, MemoryError),
    ],
)
def test_memory_that_runs_out_at_any_point_changes_no_answer(base, monkeypatch, options, error):
    """Errors before and after the real work, at random points of random steps."""
    requests = mixed(20, 5)
    alone = {r.id: next(iter(base.generate([r]))) for r in requests}
    engine = another(base, **options)
    cache, runner = engine._core.cache, engine.model_runner
    rng, struck = random.Random(1), dict.fromkeys(POINTS, 0)

    def faulty(owner, name, point):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            now = engine.stats().steps
            if now - last["step"] < 3 or rng.random() > 0.12:
                return real(*args, **kwargs)
            last["step"] = now
            struck[point] += 1
            if rng.random() < 0.5:
                raise error("before")
            real(*args, **kwargs)
            raise error("after")

        monkeypatch.setattr(owner, name, call)

    # So far apart that no request meets two of them alone.
    last = {"step": -9}
    faulty(runner, "prefill", "prefill")
    faulty(runner, "decode", "decode")
    faulty(engine.model, "logits", "logits")
    faulty(chooser.Chooser, "choose", "choose")
    faulty(chooser.Chooser, "join", "join")
    faulty(cache, "publish", "publish")
    faulty(cache, "batch", "batch")
    faulty(engine_core, "_read", "read")
    for turn in range(3):
        rng.shuffle(requests)
        found = {c.id: c for c in engine.generate(requests)}
        assert found.keys() == alone.keys(), turn
        for name, completion in found.items():
            same(completion, alone[name])
    stats = engine.stats()
    assert stats.failed == 0
    assert stats.pages_in_use == stats.rows == 0
    assert sum(struck.values()) > 10
    assert sum(count > 0 for count in struck.values()) >= 5
    # An error while a sequence joins only makes the next step build its tensors again.
    assert stats.shortages + struck["join"] >= sum(struck.values())


@pytest.mark.parametrize("where", ["prefill", "decode"])
def test_a_request_that_runs_out_of_memory_alone_fails_alone(base, monkeypatch, where):
    requests = [text(str(i), 6, 5 + i) for i in range(9)]
    alone = {c.id: c.output_ids for c in base.generate(requests)}
    engine = another(base, batch_rows=9)
    runner, running = engine.model_runner, engine._core.running
    prefill, step_part, decode = runner.prefill, running.step_part, runner.decode

    def short_prefill(scheduled, cache):
        if any(seq.request.id == "4" for seq in scheduled.sequences):
            raise torch.OutOfMemoryError("injected")
        return prefill(scheduled, cache)

    def short_part(sequences, cache):
        if any(seq.request.id == "4" for seq in sequences):
            raise torch.OutOfMemoryError("injected")
        return step_part(sequences, cache)

    def short_decode(tokens, *rest):
        sequences = running.sequences
        is_whole = len(tokens) == len(sequences)
        if is_whole and any(seq.request.id == "4" for seq in sequences):
            raise torch.OutOfMemoryError("injected")
        return decode(tokens, *rest)

    if where == "prefill":
        monkeypatch.setattr(runner, "prefill", short_prefill)
    else:
        monkeypatch.setattr(running, "step_part", short_part)
        monkeypatch.setattr(runner, "decode", short_decode)
    found = {c.id: c for c in engine.generate(requests)}
    bad = found.pop("4")
    assert (bad.finish_reason, bad.out_of_memory) == ("error", True)
    assert bad.error == (
        "there is not enough memory for the request, with 9 prompt tokens and 0 patches, even alone"
    )
    assert {name: c.output_ids for name, c in found.items()} == {
        name: ids for name, ids in alone.items() if name != "4"
    }
    assert engine.stats().failed == 1
    assert engine.stats().pages_in_use == 0


def test_another_error_leaves_every_request_as_it_was(base, monkeypatch):
    requests = [text(str(i), 6, 5 + i) for i in range(5)]
    alone = {c.id: c.output_ids for c in base.generate(requests)}
    engine = another(base, batch_rows=3)
    for request in requests:
        engine.add(request)
    found = engine.step()
    for owner, name in (
        (engine.model_runner, "decode"),
        (engine_core, "_read"),
        (engine.model_runner, "prefill"),
    ):
        with monkeypatch.context() as patch:

            def broken(*args):
                raise RuntimeError("a kernel is wrong")

            patch.setattr(owner, name, broken)
            with pytest.raises(RuntimeError, match="a kernel is wrong"):
                found.extend(engine.drain())
    found += engine.drain()
    assert {c.id: c.output_ids for c in found} == alone


def test_the_limit_that_memory_has_set_is_lifted_again():
    backoff = OomBackoff()
    assert backoff.limit(32) == 32
    backoff.halve(32)
    assert backoff.limit(32) == 16
    backoff.halve(16)
    for _ in range(20):
        backoff.succeed(3)
    assert backoff.limit(32) == 8
    for _ in range(8):
        backoff.succeed(8)
    assert backoff.limit(32) == 16
    for _ in range(5):
        backoff.halve(backoff.limit(32))
    assert backoff.limit(32) == 1


def test_statistics_count_every_token(base):
    engine = another(base, batch_rows=4)
    requests = mixed(30, 8)
    found = list(engine.generate(requests))
    stats = engine.stats()
    assert stats.generated_tokens == sum(len(c.output_ids) for c in found)
    assert stats.prompt_tokens + stats.reused_tokens == sum(c.prompt_tokens for c in found)
    assert (stats.admitted, stats.finished, stats.failed) == (30, 30, 0)
    assert 0 < stats.rows_peak <= 4
    assert 0 < stats.pages_peak <= stats.pages
    assert stats.prefill_seconds > stats.vision_seconds > 0
    assert stats.decode_seconds > 0


@pytest.mark.parametrize("name", ["batch_rows", "page_size", "cache_tokens", "prefill_tokens"])
def test_sizes_that_make_no_sense(base, name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        another(base, **{name: 0})
