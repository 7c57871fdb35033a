"""Answers belong to their rows, and a row that breaks the engine breaks nothing else."""

import gc
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.processor import Processor
from mediamill.model.sampling import Sampling
from mediamill.model.tensor_parallel.tensor_parallel_engine import BrokenRanksError
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.faults import BrokenEngineError, IdentityError
from mediamill.pipeline.records import parsed_schema, prepared_schema, read_schema
from mediamill.pipeline.replica.engine_thread import EngineThread
from mediamill.pipeline.replica.load_engine import refuse_broken
from mediamill.pipeline.stages.fetch import Fetch, FetchRules
from mediamill.pipeline.stages.generate import EngineSize, Generate
from mediamill.pipeline.stages.prepare import Prepare
from mediamill.pipeline.tasks.generate_text import GenerateText
from mediamill.pipeline.tasks.prepared_row import prepared_row
from mediamill.pipeline.tasks.task import HandlerOptions
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.task import CAPTION
from tests.pipeline.world import draw_media, make_job, picture_rows

JOB = make_job("m", "o", resources__dtype="float32")  # answers of 6 tokens
SAMPLING = Sampling(max_new_tokens=6)
SIZE = EngineSize(rows=4, threads=1, on_gpu=False)


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
    table = manifest.normalize(source)
    ordinals = pa.array([{"file": 0, "index": i} for i in range(len(rows))])
    columns = {field.name: pa.nulls(len(rows), field.type) for field in read_schema(manifest)}
    columns |= {name: table[name] for name in table.column_names} | {c.ROW: ordinals}
    table = pa.table(columns).cast(read_schema(manifest))
    job = make_job("m", "o", fetch__roots=[str(media["clip"].parent)])
    fetched = Fetch(manifest, FetchRules.of(job, "/"))(table)
    prepare = Prepare(manifest, job, CAPTION, CHECKPOINT, nothing)
    found = prepare(fetched)
    prepare.close()
    return manifest, found


@pytest.fixture(scope="module")
def stage(prepared):
    generate = Generate(prepared[0], JOB, CHECKPOINT, nothing, SIZE)
    yield generate
    generate.close()


@pytest.fixture
def generate(stage):
    """The stage of all tests, with the thread that it had at first."""
    first = stage._engine_thread
    yield stage
    if stage._engine_thread is not first:
        stage.close()
        stage._engine_thread = first
        stage._engine.reset()


class Wrapped:
    """The real engine, with `change` applied to what a step gives. flying: ids it was given and has
    not answered; sizes: how many at each step.
    """

    def __init__(self, engine, change):
        self.engine, self.change = engine, change
        self.flying, self.sizes = set(), []

    def add(self, request):
        self.flying.add(request.id)
        self.engine.add(request)

    def step(self):
        self.sizes.append(len(self.flying))
        found = self.change(self, self.engine.step)
        self.flying -= {one.id for one in found}
        return found

    def reset(self):
        self.flying.clear()
        self.engine.reset()

    @property
    def unfinished(self):
        return self.engine.unfinished


def wrapped(generate, change, **options):
    """The stage with a wrapped engine, which is returned."""
    engine = Wrapped(generate._engine, change)
    generate._engine_thread = EngineThread(engine, 2 * SIZE.rows, refuse_broken, **options)
    return engine


def requests_of(generate, rows, sampling):
    """What the stage would ask of each of these rows."""
    texts = GenerateText(CAPTION, HandlerOptions(sampling, generate.decode))
    prepared = [prepared_row(rows, n, generate._image_rules) for n in range(rows.num_rows)]
    return [request for row in prepared for request in texts.requests(row)]


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
    assert found.schema.equals(parsed_schema(manifest))
    processor = Processor.load(CHECKPOINT)
    engine = Engine.load(CHECKPOINT, "cpu", "float32")
    for row in found.to_pylist():
        if row["id"] == "bad":
            assert (row[c.TEXT], row[c.ERROR_CODE]) == (None, "decode_corrupt")
            assert (row[c.FINISH_REASON], row[c.ATTEMPT]) == ("error", 1)
            continue
        visual, _ = processor.prepare_media(Path(row["uri"]).read_bytes())
        messages = processor.user_message(CAPTION_PROMPT, [visual.kind], None)
        request = Request("x", processor.build_prompt(messages, [visual]), (visual,), SAMPLING)
        alone = next(iter(engine.generate([request])))
        assert row[c.TEXT] == processor.decode(alone.output_ids)
        assert row[c.OUTPUT_TOKENS] == len(alone.output_ids)
        assert row[c.MEAN_LOGPROB] == pytest.approx(alone.mean_logprob, abs=1e-6)
        assert row[c.PROMPT_TOKENS] == len(request.input_ids)


def test_drawn_answers_follow_the_seed_and_not_the_batch(prepared):
    manifest, table = prepared
    changes = {"generation__temperature": 3.0, "generation__top_k": 0}

    def answers(rows, seed=1, batch_rows=4):
        job = make_job("m", "o", resources__dtype="float32", seed=seed, **changes)
        size = replace(SIZE, rows=batch_rows)
        generate = Generate(manifest, job, CHECKPOINT, nothing, size)
        answered = generate(rows)
        generate.close()
        return dict(zip(answered["id"].to_pylist(), answered[c.TEXT].to_pylist(), strict=True))

    first = answers(table)
    order = list(reversed(range(table.num_rows)))
    assert answers(table.take(order), batch_rows=3) == first
    other = answers(table, seed=2)
    assert sum(other[name] != text for name, text in first.items()) > len(first) // 2


def test_threads_share_full_batches_and_get_their_own_rows(prepared, generate):
    _, table = prepared
    expected = generate(table)[c.TEXT].to_pylist()

    def slowly(engine, step):
        time.sleep(0.05)
        return step()

    engine = wrapped(generate, slowly)
    found = {}

    def work(number):
        found[number] = generate(table.slice(number, 1))[c.TEXT].to_pylist()[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(8)] == expected
    assert max(engine.sizes) == 7


def test_a_call_that_comes_later_does_not_wait_for_the_first(prepared, generate):
    """A short answer leaves while a long one, which came before it, still runs."""
    _, table = prepared
    order = []

    def slowly(engine, step):
        time.sleep(0.02)
        return step()

    wrapped(generate, slowly)
    long = generate.sampling
    short = replace(long, max_new_tokens=1)

    def work(sampling, rows):
        generate._engine_thread(requests_of(generate, rows, sampling))
        order.append(sampling.max_new_tokens)

    first = threading.Thread(target=work, args=(long, table.slice(0, 2)))
    first.start()
    time.sleep(0.03)
    work(short, table.slice(4, 1))
    first.join()
    assert order == [1, 6]


def swap_ids(engine, step):
    found = finish(engine, step)
    names = [answer.id for answer in reversed(found)]
    return [replace(answer, id=name) for answer, name in zip(found, names, strict=True)]


def finish(engine, step):
    found = []
    while engine.unfinished:
        found += step()
    return found


def lose_one(engine, step):
    return finish(engine, step)[1:]


def answer_twice(engine, step):
    found = finish(engine, step)
    return [*found, found[0]]


def answer_again_later(engine, step):
    found = finish(engine, step)
    engine.first = getattr(engine, "first", found)
    return found if engine.first is found else [*found, *engine.first]


def other_tokens(engine, step):
    return [replace(one, visual_tokens=one.visual_tokens + 1) for one in step()]


@pytest.mark.parametrize("change", [swap_ids, lose_one, answer_twice, other_tokens])
def test_an_answer_to_the_wrong_row_is_fatal(prepared, generate, change):
    wrapped(generate, change)
    # The last two rows differ in their number of tokens, so that a swap of ids shows.
    with pytest.raises(IdentityError):
        generate(prepared[1].slice(6, 2))


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("bad row"), "engine_failed"), (torch.OutOfMemoryError("oom"), "engine_oom")],
)
def test_a_row_that_breaks_a_batch_is_found_and_its_neighbours_go_on(
    prepared, generate, error, code
):
    _, table = prepared
    expected = generate(table)[c.TEXT].to_pylist()

    def change(engine, step):
        found = step()
        if any("/row-00002" in name for name in engine.flying):
            raise error
        return found

    wrapped(generate, change)
    found = generate(table)
    bad = found["id"].to_pylist().index("row-00002")
    assert found[c.ERROR_CODE].to_pylist()[bad] == code
    assert found[c.ATTEMPT].to_pylist()[bad] == 2
    texts = found[c.TEXT].to_pylist()
    assert texts[bad] is None
    assert [one for n, one in enumerate(texts) if n != bad] == [
        one for n, one in enumerate(expected) if n != bad
    ]


def test_a_broken_device_stops_the_job(prepared, generate):
    def change(engine, step):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    wrapped(generate, change)
    with pytest.raises(BrokenEngineError, match="GPU cannot be used"):
        generate(prepared[1])


def test_an_engine_that_hangs_is_broken_for_all_calls(prepared, generate):
    free = threading.Event()

    def change(engine, step):
        free.wait(60)
        return step()

    wrapped(generate, change, step_s=0.5)
    raised = []

    def call():
        with pytest.raises(BrokenEngineError, match=r"not finished a step for 0\.5 s") as found:
            generate(prepared[1])
        raised.append(found.value)

    calls = [threading.Thread(target=call) for _ in range(3)]
    for one in calls:
        one.start()
    for one in calls:
        one.join(20)
    assert len(raised) == 3
    with pytest.raises(BrokenEngineError):  # who comes later does not wait either
        generate(prepared[1])
    assert not free.is_set()
    free.set()


@pytest.mark.parametrize("where", ["add", "step"])
def test_a_lost_rank_is_no_rows_fault(prepared, generate, monkeypatch, where):
    def lost(*_):
        raise BrokenRanksError("rank 1 (process 7) failed: was ended by signal 9")

    engine = wrapped(generate, lost)
    if where == "add":
        monkeypatch.setattr(engine, "add", lost)
    for _ in range(2):
        with pytest.raises(BrokenEngineError, match="lost one of its ranks: rank 1"):
            generate(prepared[1])


def test_an_idle_engine_that_has_ended_answers_nobody(prepared, generate):
    wrapped(generate, lambda engine, step: step())
    generate(prepared[1].slice(0, 1))
    generate._engine_thread.end(BrokenEngineError("a rank is gone"))
    generate._engine_thread.end(BrokenEngineError("another one"))
    with pytest.raises(BrokenEngineError, match="a rank is gone"):
        generate(prepared[1].slice(0, 1))


def test_an_engine_that_was_closed_is_freed(prepared, generate):
    engine = wrapped(generate, lambda engine, step: step())
    generate(prepared[1].slice(0, 1))
    engine_thread, freed = generate._engine_thread, weakref.finalize(engine, nothing, 0)
    engine_thread.close()
    assert not engine_thread._thread.is_alive()
    with pytest.raises(BrokenEngineError, match="closed"):
        generate(prepared[1].slice(0, 1))
    del engine_thread, engine
    generate._engine_thread = EngineThread(generate._engine, 2, refuse_broken)
    gc.collect()
    assert not freed.alive


def test_later_calls_hear_of_a_wrong_answer_too(prepared, generate):
    wrapped(generate, answer_again_later)
    rows = prepared[1].slice(6, 2)
    generate(rows)
    for _ in range(2):
        with pytest.raises(IdentityError):
            generate(rows)


def test_missing_memory_is_told_apart(prepared, generate, monkeypatch):
    """Here it is the network that runs out, for one picture, and the engine that finds it out.

    In an engine of its own: the other one's cache has the pictures' tokens.
    """
    manifest, table = prepared
    expected = generate(table)[c.TEXT].to_pylist()
    bad = table["id"].to_pylist().index("row-00002")
    patches = len(table[c.PATCHES][bad].as_py())
    encode = generate._engine.model.visual.encode

    def short(media, *rest):
        if any(one.patches.numel() == patches for one in media):
            raise torch.OutOfMemoryError("injected")
        return encode(media, *rest)

    alike = [n for n, one in enumerate(table[c.PATCHES].to_pylist()) if one and len(one) == patches]
    again = Generate(manifest, JOB, CHECKPOINT, nothing, SIZE)
    monkeypatch.setattr(again._engine.model.visual, "encode", short)
    found = again(table)
    again.close()
    codes, attempts = found[c.ERROR_CODE].to_pylist(), found[c.ATTEMPT].to_pylist()
    for number in range(table.num_rows):
        if number in alike:
            assert (codes[number], attempts[number]) == ("engine_oom", 2)
            assert "not enough memory" in found[c.ERROR_MESSAGE][number].as_py()
        else:
            assert found[c.TEXT][number].as_py() == expected[number]


def test_rows_of_one_name_in_two_calls_wait_for_each_other(prepared, generate):
    _, table = prepared
    rows = table.slice(0, 1)
    (request,) = requests_of(generate, rows, SAMPLING)
    answers = generate._engine_thread([request] * 5)
    assert len({tuple(one.completion.output_ids) for one in answers}) == 1
    assert generate._engine_thread([]) == []


@pytest.mark.parametrize(
    "column", [c.PATCHES, c.INPUT_IDS, c.SHA256, c.ID, c.ROW, c.TENSOR_CHECKSUM]
)
def test_tensors_of_another_row_are_fatal(prepared, generate, column):
    """Two pictures of one size: every other check would let them pass."""
    table = prepared[1].slice(0, 2)
    values = table[column]
    if column == c.INPUT_IDS:  # the prompts of the two are the same
        values = pa.chunked_array([pa.array([[[7, *one][:-1]] for (one,) in values.to_pylist()])])
        values = values.cast(table[column].type)
    else:
        values = values.take(pa.array([1, 0]))
        assert values.to_pylist() != table[column].to_pylist()
    place = table.schema.get_field_index(column)
    swapped = table.set_column(place, table.schema.field(place), values)
    with pytest.raises(IdentityError, match="not those that were prepared for this row"):
        generate(swapped)


def test_seals_tell_rows_apart(prepared):
    seals = prepared[1][c.TENSOR_CHECKSUM].to_pylist()
    assert seals.pop(3) is None  # the broken one
    assert len(set(seals)) == len(seals)
