"""Several questions over one preparation, and copies that are asked once."""

import random
import threading

import numpy as np
import pytest

from mediamill.model.requests import Completion
from mediamill.model.sampling import Sampling
from mediamill.pipeline.records import RowFailure
from mediamill.pipeline.tasks.answer_cache import AnswerCache
from mediamill.pipeline.tasks.dedupe import Claim, Deduplicator, RowAnswer
from mediamill.pipeline.tasks.generate_text import GenerateText
from mediamill.pipeline.tasks.prepared_row import PreparedRow
from mediamill.pipeline.tasks.request_result import RequestResult
from mediamill.pipeline.tasks.task import HandlerOptions
from mediamill.schemas.errors import JobError
from mediamill.schemas.task import CAPTION, Question, TextTask

NAMED = TextTask(questions=(Question("one", "first?"), Question("two", "second?")))
WORDS = {1: "a", 2: "b", 3: "c"}


def decode(ids):
    return " ".join(WORDS[i] for i in ids)


def row(name="r", content=b"x", row_id=None, prompts=((5, 6), (5, 7))):
    return PreparedRow(name, name if row_id is None else row_id, prompts, (), (), None, content)


def result(ids, failure=None, reason="stop"):
    return RequestResult(Completion("x", list(ids), reason, 10, 4, -0.5), 1, failure)


def test_each_question_is_a_request_with_a_seed_of_its_own():
    texts = GenerateText(NAMED, HandlerOptions(Sampling(temperature=1.0, seed=3), decode))
    requests = texts.requests(row())
    assert [request.input_ids for request in requests] == [(5, 6), (5, 7)]
    assert len({request.id for request in requests}) == 2
    assert len({request.sampling.seed for request in requests}) == 2
    alone = GenerateText(CAPTION, HandlerOptions(Sampling(temperature=1.0, seed=3), decode))
    (plain,) = alone.requests(row(prompts=((5, 6),)))
    assert plain.id == "r"


def test_an_answer_that_fails_leaves_the_others():
    texts = GenerateText(NAMED, HandlerOptions(Sampling(), decode))
    failure = RowFailure("engine_oom", "no room")
    values, wrong = texts.answer(row(), [result([1, 2]), result([], failure, "error")])
    assert (values["one"], values["one_error_code"]) == ("a b", None)
    assert (values["two"], values["two_error_code"]) == (None, "engine_oom")
    assert values["two_mean_logprob"] is None
    assert wrong == RowFailure("engine_oom", "two: no room")
    values, wrong = texts.answer(row(), [result([9]), result([3])])
    assert values["two"] == "c"
    assert wrong is not None
    assert wrong.code == "parse_invalid"
    assert set(values) == {field.name for field in NAMED.answer_fields}


def test_columns_that_meet_are_refused():
    with pytest.raises(JobError, match="column 'status' is also a column"):
        TextTask(questions=(Question("status", "?"),)).check_columns(["status"], "m")
    task = TextTask(questions=(Question("a", "?"), Question("a_error_code", "?")))
    with pytest.raises(JobError, match="column 'a_error_code'"):
        task.check_columns([], "m")


class Engine:
    """Answers each row with its content, and records the contents that it was asked."""

    def __init__(self):
        self.asked = []
        self.lock = threading.Lock()

    def __call__(self, rows):
        with self.lock:
            self.asked += [one.content_hash for one in rows.values()]
        return {number: RowAnswer({"text": one.content_hash.hex()}) for number, one in rows.items()}


class Locked:
    """One registry for several threads, as the coordinator is: one call after the other."""

    def __init__(self, answers):
        self.answers, self.lock = answers, threading.Lock()

    def claim(self, contents):
        with self.lock:
            return self.answers.claim(contents)

    def put(self, answers):
        with self.lock:
            self.answers.put(answers)


@pytest.mark.parametrize("seed", range(5))
def test_each_content_is_asked_once_by_any_number_of_callers(seed):
    draw = random.Random(seed)
    engine, registry = Engine(), Locked(AnswerCache())
    contents = [bytes([draw.randrange(12)]) for _ in range(120)]
    rows = [row(f"n{i}", one) for i, one in enumerate(contents)]
    answered = {}

    def call(part):
        found = Deduplicator(registry, patience_s=20).answers(dict(part), engine)
        with engine.lock:
            answered.update(found)

    cut = sorted(draw.sample(range(120), 5))
    numbered = list(enumerate(rows))
    parts = [numbered[a:b] for a, b in zip([0, *cut], [*cut, 120], strict=True)]
    threads = [threading.Thread(target=call, args=(part,)) for part in parts]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert sorted(answered) == list(range(120))
    assert sorted(engine.asked) == sorted(set(contents))
    originals = {}
    for number, one in answered.items():
        assert one.values["text"] == contents[number].hex()
        if one.duplicate_of is None:
            assert originals.setdefault(contents[number], number) == number
    for number, one in answered.items():
        if one.duplicate_of is not None:
            assert one.duplicate_of == f"n{originals[contents[number]]}"


def test_a_row_whose_first_try_was_lost_is_no_copy_of_itself():
    answers = AnswerCache()
    assert answers.claim([(b"k", "r", 7)]) == [Claim(7, mine=True)]
    assert answers.claim([(b"k", "r", 7)]) == [Claim(7, mine=True)]
    engine = Engine()
    found = Deduplicator(answers).answers({0: row("r", b"k", 7)}, engine)
    assert found[0].duplicate_of is None
    assert engine.asked == [b"k"]
    again = Deduplicator(answers).answers({0: row("r", b"k", 7)}, engine)
    assert (again[0].duplicate_of, engine.asked) == (None, [b"k"])


def test_who_answers_and_never_comes_back_is_not_waited_for():
    answers, engine = AnswerCache(), Engine()
    answers.claim([(b"k", "gone", 1)])
    found = Deduplicator(answers, patience_s=0.2).answers({0: row("r", b"k", 2)}, engine)
    assert found[0].duplicate_of is None
    assert engine.asked == [b"k"]
    found = Deduplicator(answers).answers({0: row("s", b"k", 3)}, engine)
    assert found[0].values["text"] == b"k".hex()
    assert engine.asked == [b"k"]


def test_a_failure_is_the_copies_failure_too():
    def ask(rows):
        return {number: RowAnswer({}, RowFailure("engine_oom", "no room")) for number in rows}

    found = Deduplicator(AnswerCache()).answers({0: row("a", b"k"), 1: row("b", b"k")}, ask)
    assert found[1] == RowAnswer({}, RowFailure("engine_oom", "no room"), "a")


def test_what_is_remembered_is_bounded_and_what_is_not_is_asked_again(caplog):
    answers, engine = AnswerCache(max_bytes=100_000), Engine()
    copies = Deduplicator(answers)
    for number in range(5000):
        copies.answers({0: row(f"n{number}", number.to_bytes(4))}, engine)
    assert len(engine.asked) == 5000
    assert "database or disk is full" in caplog.text
    assert copies.answers({0: row("x", (0).to_bytes(4))}, engine)[0].duplicate_of == "n0"
    for name in ("y", "z"):
        found = copies.answers({0: row(name, (4999).to_bytes(4))}, engine)
        assert found[0].duplicate_of is None
    assert engine.asked[5000:] == [(4999).to_bytes(4)] * 2


def test_what_is_remembered_comes_back_as_it_was():
    answers = AnswerCache()
    values = {
        "text": "a \0 \U0001f600 é", "empty": "", "none": None, "yes": True, "large": 2**53 + 1,
        "vector": [0.1, float(np.float32(0.1)), 5e-324, 1.7976931348623157e308],
        "scores": [{"text": "x", "rank": 1, "token_logprobs": [-0.0, -1e-9]}],
    }  # fmt: skip
    answered = {b"a": RowAnswer(values), b"b": RowAnswer({}, RowFailure("engine_oom", "no room"))}
    for number, key in enumerate(answered):
        answers.claim([(key, "r", number)])
    answers.put(answered)
    answers.put(
        {b"a": RowAnswer({}), b"c": RowAnswer({})}
    )  # a second answer, and one that nobody claimed
    claims = answers.claim([(key, "s", "t") for key in (*answered, b"c")])
    assert claims == [
        Claim(0, False, answered[b"a"]),
        Claim(1, False, answered[b"b"]),
        Claim("t", mine=True),
    ]
