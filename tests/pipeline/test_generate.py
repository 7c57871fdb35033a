"""Answers belong to their rows, and a row that breaks the engine breaks nothing else."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from model.engine import Engine, Request
from model.processor import Processor, VideoRules
from model.sampling import Sampling
from model.tiny import CAPTION_PROMPT, CHECKPOINT
from pipeline.batcher import Batcher
from pipeline.fetch import Fetch, FetchRules
from pipeline.generate import BrokenEngineError, Generate, GenerateRules, IdentityError
from pipeline.parse import Parse
from pipeline.prepare import MediaLimits, Prepare, PrepareRules
from pipeline.records import generated_schema, parsed_schema, prepared_schema, read_schema
from schemas import columns as c
from schemas.manifest import check_manifest_schema
from tests.pipeline.world import draw_media, picture_rows

RULES = GenerateRules(Sampling(max_new_tokens=6), "float32", "cpu", batch_rows=4, threads=1)


def nothing(number):
    pass


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Six pictures, one broken row and a clip, as they come out of prepare."""
    media = draw_media(tmp_path_factory.mktemp("generate"))
    rows = picture_rows(media, 6)
    rows.insert(3, {"id": "bad", "uri": str(media["truncated"]), "kind": None})
    rows.append({"id": "clip", "uri": str(media["clip"]), "kind": "v"})
    source = pa.Table.from_pylist(rows)
    manifest = check_manifest_schema(source.schema, "m")
    table = manifest.normalise(source)
    ordinals = pa.array([{"file": 0, "index": i} for i in range(len(rows))])
    columns = {field.name: pa.nulls(len(rows), field.type) for field in read_schema(manifest)}
    columns |= {name: table[name] for name in table.column_names} | {c.ROW: ordinals}
    table = pa.table(columns).cast(read_schema(manifest))
    rules = PrepareRules(CAPTION_PROMPT, None, None, None, VideoRules(), MediaLimits())
    fetched = Fetch(manifest, FetchRules(10**7, 5.0, "/"))(table)
    return manifest, Prepare(manifest, rules, CHECKPOINT, nothing)(fetched)


@pytest.fixture(scope="module")
def generate(prepared):
    return Generate(prepared[0], RULES, CHECKPOINT, nothing)


def wrapped(generate, monkeypatch, change):
    """The real engine, with `change` applied to what it gives; for requests first to last."""
    engine = generate._engine

    class Wrapped:
        def generate(self, requests):
            return change(list(requests), engine)

    monkeypatch.setattr(generate, "_engine", Wrapped())


def test_prepared_rows(prepared):
    manifest, table = prepared
    assert table.schema.equals(prepared_schema(manifest))
    grids = table[c.GRID_THW].to_pylist()
    for number, grid in enumerate(grids):
        if number == 3:
            assert grid is None
            assert table[c.PATCHES][number].as_py() is None
            continue
        t, h, w = grid
        width = 1176 if table[c.MEDIA_KINDS][number].as_py() == ["video"] else 588
        assert len(table[c.PATCHES][number].as_py()) == t * h * w * width
        assert table[c.VISUAL_TOKENS][number].as_py() == t * h * w // 4


def test_answers_are_the_engines_and_texts_the_processors(prepared, generate):
    manifest, table = prepared
    found = generate(table)
    assert found.schema.equals(generated_schema(manifest))
    processor = Processor.load(CHECKPOINT)
    texts = Parse(manifest, processor.decode)(found)
    assert texts.schema.equals(parsed_schema(manifest))
    engine = Engine.load(CHECKPOINT, "cpu", "float32")
    for number, row in enumerate(texts.to_pylist()):
        if row["id"] == "bad":
            assert (row[c.TEXT], row[c.ERROR_CODE]) == (None, "decode_corrupt")
            assert (row[c.FINISH_REASON], row[c.ATTEMPT]) == ("error", 1)
            continue
        visual, _ = processor.prepare_media(Path(row["uri"]).read_bytes())
        messages = processor.user_message(CAPTION_PROMPT, [visual.kind], None)
        request = Request(
            "x", processor.build_prompt(messages, [visual]), (visual,), RULES.sampling
        )
        alone = next(iter(engine.generate([request])))
        assert found[c.OUTPUT_IDS][number].as_py() == alone.output_ids
        assert row[c.TEXT] == processor.decode(alone.output_ids)
        assert row[c.PROMPT_TOKENS] == len(request.input_ids)


def test_drawn_answers_follow_the_seed_and_not_the_batch(prepared):
    manifest, table = prepared
    sampling = replace(RULES.sampling, temperature=3.0, top_k=0, seed=1)

    def answers(rows, seed=1, batch_rows=4):
        rules = replace(RULES, sampling=replace(sampling, seed=seed), batch_rows=batch_rows)
        found = Generate(manifest, rules, CHECKPOINT, nothing)(rows)
        return dict(zip(found["id"].to_pylist(), found[c.OUTPUT_IDS].to_pylist(), strict=True))

    first = answers(table)
    order = list(reversed(range(table.num_rows)))
    assert answers(table.take(order), batch_rows=3) == first
    other = answers(table, seed=2)
    assert sum(other[name] != ids for name, ids in first.items()) > len(first) // 2


def test_threads_share_full_batches_and_get_their_own_rows(prepared, generate, monkeypatch):
    _, table = prepared
    expected = generate(table)[c.OUTPUT_IDS].to_pylist()
    sizes = []

    def change(requests, engine):
        sizes.append(len(requests))
        time.sleep(0.05)
        return engine.generate(requests)

    wrapped(generate, monkeypatch, change)
    found = {}

    def work(number):
        found[number] = generate(table.slice(number, 1))[c.OUTPUT_IDS].to_pylist()[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(8)] == expected
    assert sum(sizes) == 7
    assert max(sizes) > 1


def swap_ids(requests, engine):
    answers = list(engine.generate(requests))
    names = [answer.id for answer in reversed(answers)]
    return map(lambda answer, name: replace(answer, id=name), answers, names)


def lose_one(requests, engine):
    return iter(list(engine.generate(requests))[1:])


def answer_twice(requests, engine):
    answers = list(engine.generate(requests))
    return iter([*answers, answers[0]])


def other_tokens(requests, engine):
    return (replace(one, visual_tokens=one.visual_tokens + 1) for one in engine.generate(requests))


@pytest.mark.parametrize("change", [swap_ids, lose_one, answer_twice, other_tokens])
def test_an_answer_to_the_wrong_row_is_fatal(prepared, generate, monkeypatch, change):
    wrapped(generate, monkeypatch, change)
    # The last two rows differ in their number of tokens, so that a swap of ids shows.
    with pytest.raises(IdentityError):
        generate(prepared[1].slice(6, 2))


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("bad row"), "engine_failed"), (torch.OutOfMemoryError("oom"), "engine_oom")],
)
def test_a_row_that_breaks_a_batch_is_found_and_its_neighbours_go_on(
    prepared, generate, monkeypatch, error, code
):
    _, table = prepared
    expected = generate(table)[c.OUTPUT_IDS].to_pylist()

    def change(requests, engine):
        if any("/row-00002" in request.id for request in requests):
            raise error
        return engine.generate(requests)

    wrapped(generate, monkeypatch, change)
    found = generate(table)
    bad = found["id"].to_pylist().index("row-00002")
    assert found[c.ERROR_CODE].to_pylist()[bad] == code
    assert found[c.ATTEMPT].to_pylist()[bad] == 2
    ids = found[c.OUTPUT_IDS].to_pylist()
    assert ids[bad] is None
    assert [one for n, one in enumerate(ids) if n != bad] == [
        one for n, one in enumerate(expected) if n != bad
    ]


def test_a_broken_device_stops_the_job(prepared, generate, monkeypatch):
    def change(requests, engine):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    wrapped(generate, monkeypatch, change)
    with pytest.raises(BrokenEngineError, match="GPU cannot be used"):
        generate(prepared[1])


def test_the_batcher_tells_every_caller_of_an_error():
    def answer(items):
        if 3 in items:
            raise KeyError("three")
        return [10 * item for item in items]

    batcher = Batcher(answer, 2)
    assert batcher([1, 2, 4, 5]) == [10, 20, 40, 50]
    with pytest.raises(KeyError):
        batcher([3])
    assert batcher([]) == []
    assert batcher([6]) == [60]
