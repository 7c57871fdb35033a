"""Scores of texts: ranks and probabilities, and texts that cannot be scored."""

import math
import random

import pytest

from mediamill.model.errors import ModelError
from mediamill.model.requests import Completion, Score
from mediamill.pipeline.tasks.embed import Embed
from mediamill.pipeline.tasks.prepared_row import PreparedRow
from mediamill.pipeline.tasks.request_result import RequestResult
from mediamill.pipeline.tasks.score import ScoreTexts, ranked, texts_to_score
from mediamill.schemas.errors import RowError
from mediamill.schemas.job_tasks import EmbedConfig, ScoreConfig
from mediamill.schemas.task import EmbedTask, ScoreTask


def drawn(rng, count):
    """Scores on a coarse grid, so that ties happen."""
    return [
        Score(sum(each), each)
        for each in ([-rng.randint(0, 3) / 2] * rng.randint(1, 3) for _ in range(count))
    ]


@pytest.mark.parametrize("by", ["total", "mean"])
def test_ranks_and_probabilities_follow_from_the_scores(by):
    rng = random.Random(1)
    for _ in range(200):
        scores = drawn(rng, rng.randint(1, 7))
        texts = [f"text {i}" for i in range(len(scores))]
        found = ranked(texts, scores, by)
        assert [one["text"] for one in found] == texts
        key = {"total": "logprob", "mean": "mean_logprob"}[by]
        for i, one in enumerate(found):
            # As many are before it as are likelier, or as likely and given earlier.
            before = sum(
                other[key] > one[key] or (other[key] == one[key] and j < i)
                for j, other in enumerate(found)
            )
            assert one["rank"] == before + 1
            assert one["mean_logprob"] == pytest.approx(one["logprob"] / one["tokens"])
        odds = [math.exp(score.total) for score in scores]
        want = [value / sum(odds) for value in odds]
        assert [one["probability"] for one in found] == pytest.approx(want)


def test_improbable_texts_have_probabilities_too():
    found = ranked("ab", [Score(-5000.0, [-5000.0]), Score(-5001.0, [-5001.0])], "total")
    assert found[0]["probability"] == pytest.approx(1 / (1 + math.exp(-1)))


def row(values=()):
    return PreparedRow("name", "id", [[1, 2]], [[3, 4], [5]], (), None, b"", dict(values))


def results(**answer):
    return [RequestResult(Completion("name", [], "done", 2, 0, 0.0, **answer))]


@pytest.mark.parametrize("end_token", [True, False])
def test_the_end_token_follows_each_text_where_it_is_asked_for(end_token):
    config = ScoreConfig(texts=("yes", "no"), end_token=end_token)
    [request] = ScoreTexts(ScoreTask(score=config), 9).requests(row())
    more = [9] if end_token else []
    assert request.continuations == [[3, 4, *more], [5, *more]]
    assert (request.id, request.input_ids, request.mode) == ("name", [1, 2], "score")


def test_a_checkpoint_without_an_end_token():
    task = ScoreTask(score=ScoreConfig(texts=("a",)))
    with pytest.raises(ModelError, match=r"score\.end_token: found true"):
        ScoreTexts(task, None)


def test_the_columns_of_a_row():
    scores = [Score(-3.0, [-1.0, -2.0]), Score(-2.0, [-2.0])]
    config = ScoreConfig(column="answers")
    values, failure = ScoreTexts(ScoreTask(score=config), 9).answer(
        row({"answers": ["yes", "no"]}), results(scores=scores)
    )
    assert failure is None
    assert (values["text"], values["mean_logprob"]) == ("no", -2.0)
    assert values["probability"] == pytest.approx(1 / (1 + math.e))
    assert [one["rank"] for one in values["scores"]] == [2, 1]
    # By the mean the longer one is likelier.
    by_mean = ScoreTexts(ScoreTask(score=config.model_copy(update={"rank_by": "mean"})), 9)
    values, _ = by_mean.answer(row({"answers": ["yes", "no"]}), results(scores=scores))
    assert (values["text"], values["mean_logprob"]) == ("yes", -1.5)
    # A single text is as likely as itself.
    values, _ = ScoreTexts(ScoreTask(score=config), 9).answer(
        row({"answers": "yes"}), results(scores=scores[:1])
    )
    assert (values["text"], values["probability"]) == ("yes", None)


def test_numbers_that_are_none_are_error_rows():
    config = ScoreConfig(texts=("a",))
    values, failure = ScoreTexts(ScoreTask(score=config), 9).answer(
        row(), results(scores=[Score(math.nan, [math.nan])])
    )
    assert failure is not None
    assert values == {"finish_reason": "error"}
    embed = EmbedTask(embed=EmbedConfig(pool="last"))
    values, failure = Embed(embed).answer(row(), results(embedding=[1.0, math.inf]))
    assert failure is not None
    assert (failure.code, values["embedding"]) == ("engine_failed", None)
    with pytest.raises(ValueError, match=r"embed\.pool is auto"):
        Embed(EmbedTask())


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (None, "found null, expected a text"),
        ([], "found an empty list, expected"),
        ("", "found an empty text, expected"),
        (["a", None], "found null as text 2 of 2"),
        (["", "a"], "found an empty text as text 1 of 2"),
    ],
)
def test_what_is_no_text_is_named(found, sentence):
    config = ScoreConfig(column="answers")
    with pytest.raises(RowError, match=sentence) as error:
        texts_to_score({"answers": found}, config)
    assert error.value.code == "prompt_invalid"
    assert "answers (score.column)" in str(error.value)
    assert texts_to_score({"answers": "one"}, config) == ["one"]
    assert texts_to_score({}, ScoreConfig(texts=("x", "y"))) == ("x", "y")
