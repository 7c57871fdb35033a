"""Answers in JSON become typed columns; what does not fit is asked again, then is an error row."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from benchmarks.questions import Way
from mediamill.model.requests import Completion
from mediamill.model.sampling import Sampling
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.model.tiny.drawing import COLOURS, SHAPES
from mediamill.model.tiny.encode import picture_file
from mediamill.pipeline.plan import check
from mediamill.pipeline.run import run
from mediamill.pipeline.tasks.generate_text import GenerateText
from mediamill.pipeline.tasks.json_answers import check_schemas, question_sampling
from mediamill.pipeline.tasks.prepared_row import PreparedRow
from mediamill.pipeline.tasks.request_result import RequestResult
from mediamill.pipeline.tasks.task import HandlerOptions
from mediamill.schemas.errors import JobError
from mediamill.schemas.job_tasks import JsonConfig
from mediamill.schemas.task import task_of
from tests.pipeline.world import assert_each_once, make_job, read_output, write_manifest

CAPTION = "^a (small|large) (" + "|".join(COLOURS) + ") (" + "|".join(SHAPES) + ")$"
SCHEMA = {
    "type": "object",
    "properties": {
        "caption": {"type": "string", "pattern": CAPTION},
        "colour": {"enum": [*COLOURS]},
        "count": {"type": "integer", "minimum": 1, "maximum": 3},
        "sure": {"type": "boolean"},
        "boxes": {
            "type": "array",
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["x"],
            },
        },
    },
    "required": ["caption", "colour", "count", "sure", "boxes"],
}
SHORT = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}}
WORD = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}


def task(**changes):
    wish = {"prompt": "x", "json_schema": SHORT} | changes
    return task_of(make_job("m", "o", **wish))


def answers(*texts):
    """What a model that says these texts is made to answer: ids are numbers of texts."""
    return [
        Completion("r", [number], "stop", 3, 0, -0.5, logprobs=[-0.5])
        for number, _ in enumerate(texts)
    ], lambda ids: texts[ids[0]]


ROW = PreparedRow("r", "id-1", [[1, 2, 3]], [], (), None, b"")


def asked(of, *texts, sampling=None):
    """Ask until nothing more is asked; the values, the failure and all requests."""
    completions, decode = answers(*texts)
    texts_of = GenerateText(of, HandlerOptions(sampling or Sampling(seed=4), decode))
    requests = texts_of.requests(ROW)
    result = RequestResult(completions[0])
    for number in range(1, 99):
        again = texts_of.retry(ROW, 0, result)
        if again is None:
            break
        requests.append(again)
        result = RequestResult(completions[number], number + 1, asked=number + 1)
    values, failure = texts_of.answer(ROW, [result])
    return values, failure, requests


def test_an_answer_that_fits_is_asked_once():
    values, failure, requests = asked(task(), '{"colour": "red"}')
    assert failure is None
    assert (values["colour"], values["text"]) == ("red", '{"colour": "red"}')
    assert len(requests) == 1
    assert json.loads(requests[0].sampling.json_schema)["properties"] == SHORT["properties"]
    assert requests[0].sampling.temperature == 0


def test_an_answer_that_does_not_fit_is_asked_again_with_another_seed():
    values, failure, requests = asked(task(), "red", '{"colour": "blue"}')
    assert failure is None
    assert values["colour"] == "blue"
    first, second = (request.sampling for request in requests)
    assert first.seed != second.seed
    # The likeliest answer would come out again, and checkpoints may set top_k to 1.
    assert (second.temperature, second.top_k, second.top_p) == (0.7, 0, 1.0)
    assert second.json_schema == first.json_schema


def test_an_answer_that_never_fits_is_an_error_with_its_text():
    values, failure, requests = asked(task(), "red", '{"colour": "grün"}')
    assert failure.code == "json_invalid"
    assert failure.message == "json_schema: $.colour: 'grün' is not one of ['red', 'blue']"
    assert values["text"] == '{"colour": "grün"}'
    assert values.get("colour") is None
    assert len(requests) == 2


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_job_says_how_often(retries):
    _, failure, requests = asked(task(json_answers__retries=retries), *("no" * 9))
    assert failure.code == "json_invalid"
    assert len(requests) == 1 + retries
    assert len({request.sampling.seed for request in requests}) == 1 + retries


def test_what_the_job_says_of_drawing_holds_for_retries():
    wish = Sampling(temperature=1.2, top_k=7, top_p=0.5, seed=4)
    _, _, requests = asked(task(), "no", "no", sampling=wish)
    for request in requests:
        found = replace(request.sampling, seed=4, json_schema=None)
        assert found == wish


def test_what_the_engine_tried_anew_counts_not_as_asked():
    """Whether a fault made the engine begin again must not decide what a row says."""
    completions, decode = answers("no", "no")
    texts_of = GenerateText(task(), HandlerOptions(Sampling(seed=4), decode))
    one, other = (
        texts_of.retry(ROW, 0, RequestResult(completions[0], attempt)) for attempt in (1, 2)
    )
    assert one == other
    assert one is not None


def test_unconstrained_answers_are_only_checked():
    _, failure, requests = asked(task(json_answers__constrained=False), "no", '{"colour": "red"}')
    assert failure is None
    assert [request.sampling.json_schema for request in requests] == [None, None]


def test_an_answer_that_was_cut_off_says_what_to_change():
    texts_of = GenerateText(task(), HandlerOptions(Sampling(), lambda ids: '{"colour": "re'))
    done = Completion("r", [1] * 6, "length", 3, 0, -0.5)
    values, failure = texts_of.answer(ROW, [RequestResult(done, 2)])
    assert failure.message.startswith(
        "json_schema: the answer was cut off after 6 tokens: raise generation.max_new_tokens"
    )
    assert values["text"] == '{"colour": "re'
    assert values["finish_reason"] == "length"


def test_a_prompt_without_a_schema_asks_as_ever():
    plain = Sampling(temperature=0.5, seed=9)
    of = task_of(make_job("m", "o"))
    (request,) = GenerateText(of, HandlerOptions(plain, str)).requests(ROW)
    assert request.sampling == replace(plain, seed=request.sampling.seed)
    found = question_sampling(of.questions[0], plain, JsonConfig(), "id-1", 1)
    assert found == request.sampling


def test_a_schema_that_answers_cannot_be_held_to_stops_the_job():
    bad = {"type": "object", "properties": {"a": {"not": {"const": 1}}}}
    with pytest.raises(JobError) as caught:
        check_schemas(task(json_schema=bad))
    assert str(caught.value) == (
        'json_schema: answers cannot be held to it: Unimplemented keys: ["not"]: take that out of '
        "the schema, or set json_answers.constrained=false, which checks answers afterwards"
    )
    check_schemas(task(json_schema=bad, json_answers__constrained=False))
    named = {"one": {"prompt": "x", "json_schema": bad}}
    of = task_of(make_job("m", "o", prompt=None, prompts=named))
    with pytest.raises(JobError, match=r"^prompts\.one\.json_schema: "):
        check_schemas(of)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Thirty pictures of one shape, a broken one, and their right captions by id."""
    folder = tmp_path_factory.mktemp("json")
    rows, truths = [], {}
    for number in range(30):
        scene, data = picture_file(np.random.default_rng((5, number)), "one", "png")
        path = folder / f"{number}.png"
        path.write_bytes(data)
        truths[f"p{number:02}"] = scene.caption
        rows.append({"id": f"p{number:02}", "uri": str(path), "kind": "a"})
    (folder / "bad.png").write_bytes(b"no picture")
    rows.append({"id": "bad", "uri": str(folder / "bad.png"), "kind": "a"})
    return write_manifest(folder / "m.parquet", rows), truths


def test_a_job_gives_typed_columns_and_right_answers(tmp_path, ray_cluster, pictures):
    """The pattern of a caption: the network is held to the form, and sees the rest."""
    manifest, truths = pictures
    wish = {"generation__max_new_tokens": 80, "json_schema": SCHEMA}
    run(make_job(manifest, tmp_path / "o", **wish))
    table = pads.dataset(tmp_path / "o", format="parquet", partitioning="hive").to_table()
    kinds = {name: table.schema.field(name).type for name in SCHEMA["properties"]}
    assert kinds == {
        "caption": pa.string(),
        "colour": pa.string(),
        "count": pa.int64(),
        "sure": pa.bool_(),
        "boxes": pa.list_(pa.struct([("x", pa.int64())])),
    }
    rows = read_output(tmp_path / "o")
    assert_each_once(rows, [*truths, "bad"])
    right = 0
    for row in rows:
        if row["id"] == "bad":
            assert row["error_code"] == "decode_unsupported"
            assert row["text"] is row["caption"] is None
            continue
        assert (row["status"], row["attempt"], row["finish_reason"]) == ("ok", 1, "stop")
        found = json.loads(row["text"])
        jsonschema.validate(found, SCHEMA)
        assert found == {name: row[name] for name in SCHEMA["properties"]}
        right += row["caption"] == truths[row["id"]]
    assert right == len(truths)


def test_free_answers_are_asked_again_and_become_errors(pictures):
    """The tiny network does not speak JSON; named prompts fail apart."""
    manifest, truths = pictures
    prompts = {
        "what": CAPTION_PROMPT,
        "colour": {"prompt": CAPTION_PROMPT, "json_schema": WORD},
    }
    wish = {"json_answers.constrained": False, "generation.max_new_tokens": 16}
    read = pq.read_table(manifest).to_pylist()
    stages = Way(read, manifest.parent, str(CHECKPOINT), prompts=prompts, **wish)
    rows = stages.answers_of()
    assert_each_once(rows, [*truths, "bad"])
    texts = set()
    for row in rows:
        if row["id"] == "bad":
            continue
        assert (row["status"], row["attempt"]) == ("error", 2)
        assert row["error_code"] == row["colour_error_code"] == "json_invalid"
        assert row["error_message"].startswith("colour: json_schema: is no JSON")
        assert row["what_error_code"] is None
        assert row["what"] == truths[row["id"]]
        assert row["colour_colour"] is None
        texts.add(row["colour"])
    assert None not in texts
    # Drawn, with seeds of their own.
    assert len(texts) > 3


def test_the_fingerprint_knows_the_order_of_properties(tmp_path, pictures):
    def fingerprint(schema):
        job = make_job(pictures[0], tmp_path / "o", json_schema=schema, model=str(CHECKPOINT))
        return check(job).fingerprint

    one = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}}
    other = {"type": "object", "properties": {"b": {"const": 2}, "a": {"const": 1}}}
    assert fingerprint(one) == fingerprint(one)
    assert len({fingerprint(one), fingerprint(other), fingerprint(None)}) == 3
