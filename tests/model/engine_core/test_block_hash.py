"""A shared prefix is computed once, and no output changes by it."""

import gc
import random
from dataclasses import replace

import pytest
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.engine_core.block_hash import TensorIds, block_hashes
from mediamill.model.inputs import VisualInput
from mediamill.model.sampling import Sampling
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.prompts import MEDIA, prompt

KINDS = [{}, {"page_size": 4}, {"page_size": 16}]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An engine that shares nothing."""
    folder = write_checkpoint(tmp_path_factory.mktemp("prefix"), SHAPES["sliding window"], seed=7)
    return Engine.load(folder, device="cpu", mrope="hf5", share_prefixes=False)


def sharing(plain, **options):
    return Engine(plain.model, plain.rules, plain.defaults, **options)


def ask(name, ids, visuals=(), names=None, new=5, **options):
    sampling = Sampling(max_new_tokens=new, eos_token_ids=(), repetition_penalty=1.0)
    return Request(name, ids, visuals, sampling, media_names=names, **options)


def alone(plain, requests):
    return {r.id: next(iter(plain.generate([r]))).output_ids for r in requests}


def test_block_hashes_follow_tokens_and_media():
    ids = list(range(40))
    hashes = block_hashes(ids, [(9, b"x")], 8)
    assert len(hashes) == 5
    assert len(set(hashes)) == 5
    assert block_hashes([*ids, 1], [(9, b"x")], 8) == hashes
    for i in (0, 8, 39):
        other = [*ids[:i], 99, *ids[i + 1 :]]
        changed = block_hashes(other, [(9, b"x")], 8)
        equal = [a == b for a, b in zip(hashes, changed, strict=True)]
        assert equal == [n < i // 8 for n in range(5)]
    moved = block_hashes(ids, [(9, b"y")], 8)
    assert [a == b for a, b in zip(hashes, moved, strict=True)] == [True] + [False] * 4
    assert block_hashes(ids[:7], [], 8) == []


def test_a_tensor_keeps_its_id_and_the_next_at_its_address_gets_another():
    ids, seen = TensorIds(), set()
    tensor = torch.zeros(3)
    assert ids.of(tensor) == ids.of(tensor)
    assert ids.of(tensor) != ids.of(torch.zeros(3))
    for _ in range(200):
        fresh = torch.zeros(3)
        assert ids.of(fresh) not in seen
        seen.add(ids.of(fresh))
        del fresh
    gc.collect()
    assert len(ids._entries) == 1


@pytest.mark.parametrize("options", KINDS)
def test_questions_about_one_picture_compute_it_once(plain, options):
    case = prompt(1, [("image", (1, 12, 12))], words=9)
    questions = [ask(str(i), [*case.ids, 7, i, 30 + i], case.visuals) for i in range(6)]
    expected = alone(plain, questions)
    engine = sharing(plain, **options)
    found = {c.id: c.output_ids for c in engine.generate(questions)}
    assert found == expected
    stats = engine.stats()
    shared = len(case.ids) + 1
    # The first computes it, and the other five continue from it in the same step.
    assert stats.reused_tokens == 5 * shared
    assert stats.visual_tokens == 36
    assert stats.prompt_tokens == sum(len(q.input_ids) for q in questions) - 5 * shared
    # After the others have finished.
    (again,) = engine.generate([replace(questions[0], id="again")])
    assert again.output_ids == expected["0"]
    assert engine.stats().visual_tokens == 36


@pytest.mark.parametrize("options", KINDS)
def test_prefixes_of_every_length_and_random_order(plain, options):
    """Prompts that end inside and beyond media of others, in a cache too small to keep them all."""
    rng = random.Random(2)
    cases = [prompt(30 + i, media, words=5) for i, media in enumerate(MEDIA)]
    requests = []
    for i in range(30):
        case = rng.choice(cases)
        tail = [rng.randrange(500) for _ in range(rng.randrange(0, 30))]
        start = rng.choice([[], [3] * 20, [4] * 33])
        requests.append(ask(str(i), start + case.ids + tail, case.visuals, new=rng.randrange(1, 9)))
    expected = alone(plain, requests)
    for size in ({}, {"cache_tokens": 700 if options else 1500}):
        engine = sharing(plain, batch_rows=7, **options, **size)
        for _ in range(2 if size else 1):
            rng.shuffle(requests)
            assert {c.id: c.output_ids for c in engine.generate(requests)} == expected
        stats = engine.stats()
        assert stats.reused_tokens > (100 if size else 400)
        assert stats.pages_in_use == 0


def test_media_are_told_apart_by_identity_or_by_name(plain):
    first, second = (prompt(seed, [("image", (1, 8, 8))], words=8) for seed in (5, 6))
    ids = first.ids
    copies = tuple(VisualInput(v.kind, v.patches.clone(), v.grid_thw) for v in first.visuals)
    engine = sharing(plain, page_size=4)
    expected = alone(plain, [ask("a", ids, first.visuals), ask("b", ids, second.visuals)])
    assert expected["a"] != expected["b"]

    def reused(visuals, names=None):
        before = engine.stats().reused_tokens
        (done,) = engine.generate([ask("x", ids, visuals, names)])
        return done.output_ids, engine.stats().reused_tokens - before

    assert reused(first.visuals) == (expected["a"], 0)
    # The words before the picture are the same.
    assert reused(second.visuals) == (expected["b"], 8)
    assert reused(copies) == (expected["a"], 8)
    full_pages = (len(ids) - 1) // 4 * 4
    assert reused(copies) == (expected["a"], full_pages)
    assert reused(first.visuals, ("one",)) == (expected["a"], 8)
    assert reused(copies, ("one",)) == (expected["a"], full_pages)
    assert reused(second.visuals, ("two",)) == (expected["b"], 8)


def test_a_step_encodes_a_picture_once_for_all_its_prompts(plain):
    case = prompt(8, [("image", (1, 8, 8))], words=8)
    requests = [ask(str(i), [i, *case.ids], case.visuals) for i in range(4)]
    engine = sharing(plain)
    assert {c.id: c.output_ids for c in engine.generate(requests)} == alone(plain, requests)
    assert engine.stats().visual_tokens == 16
    assert engine.stats().reused_tokens == 0


def test_nothing_is_shared_where_frequencies_follow_the_length(tmp_path):
    folder = write_checkpoint(tmp_path, SHAPES["longrope"], seed=3)
    engine = Engine.load(folder, device="cpu")
    ids = [i % 400 for i in range(70)]
    requests = [ask("short", ids[:40]), ask("long", ids)]
    together = {c.id: c.output_ids for c in engine.generate(requests)}
    for request in reversed(requests):
        (done,) = engine.generate([request])
        assert done.output_ids == together[request.id]
    assert engine.stats().reused_tokens == 0
