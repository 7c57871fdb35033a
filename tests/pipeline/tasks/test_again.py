"""Texts that are cut off or repeat themselves are asked for again, as retries.again says."""

import pytest

from mediamill.model.requests import Completion
from mediamill.model.sampling import Sampling
from mediamill.pipeline.tasks.generate_text import GenerateText
from mediamill.pipeline.tasks.prepared_row import PreparedRow
from mediamill.pipeline.tasks.request_result import RequestResult
from mediamill.pipeline.tasks.task import HandlerOptions
from mediamill.schemas.job_retries import Retries
from mediamill.schemas.task import CAPTION

PLAIN = Sampling(seed=4, top_k=1)
ROW = PreparedRow("r", "id-1", [[1, 2, 3]], [], (), None, b"")
LOOP = "the cat sat on the mat and " * 9


def samplings(answers, retries, row=ROW):
    """The samplings of all requests for a row, of which each answer is (text, finish reason)."""
    texts = GenerateText(
        CAPTION, HandlerOptions(PLAIN, lambda ids: answers[ids[0]][0], retries=retries)
    )
    requests = texts.requests(row)
    for number, (_, reason) in enumerate(answers):
        completion = Completion("r", [number], reason, 3, 0, -0.5, logprobs=[-0.5])
        again = texts.retry(row, 0, RequestResult(completion, number + 1, asked=number + 1))
        if again is None:
            break
        requests.append(again)
    return [request.sampling for request in requests]


@pytest.mark.parametrize(
    ("answers", "tries"),
    [
        ([("a cat", "stop")], 1),
        ([("a cat and", "length"), ("a cat", "stop")], 2),
        ([(LOOP, "stop"), ("a cat", "stop")], 2),
        ([("a cat a cat", "loop"), (LOOP, "length"), ("a cat", "stop")], 3),
        ([("a", "length"), ("b", "length"), ("c", "length"), ("d", "length")], 3),
    ],
)
def test_a_bad_text_is_asked_for_again(answers, tries):
    found = samplings(answers, Retries(again=2, temperature=0.4, repetition_penalty=1.2))
    assert len(found) == tries
    assert found[0].temperature == 0
    for sampling in found[1:]:
        assert (sampling.temperature, sampling.repetition_penalty) == (0.4, 1.2)
        assert (sampling.top_k, sampling.top_p) == (1, 1.0)
    assert len({sampling.seed for sampling in found}) == tries


def test_the_tries_of_a_row_are_the_same_in_every_run():
    answers, retries = [("a", "length"), ("b", "length"), ("c", "stop")], Retries(again=2)
    assert samplings(answers, retries) == samplings(answers, retries)
    other = PreparedRow("r", "id-2", [[1, 2, 3]], [], (), None, b"")
    assert samplings(answers, retries, other) != samplings(answers, retries)


def test_nothing_is_asked_again_by_default():
    assert len(samplings([("a", "length")], Retries())) == 1
