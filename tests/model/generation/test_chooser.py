"""What may be drawn is what the reference leaves, and what is drawn follows from seed and step."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mediamill.model.generation.chooser import Chooser
from mediamill.model.generation.filters import LIST, penalize_repetition
from mediamill.model.sampling import GenerationRule
from mediamill.model.tiny import CHECKPOINT
from tests import oracle

CPU = torch.device("cpu")
GREEDY = GenerationRule(100, 0, 0.0, 0, 1.0, 0.0, 1.0, (3, 4), (), 0, 0)
DRAWN = replace(GREEDY, temperature=1.0)
PROMPT = [1, 2, 3, 3, 7]


@pytest.fixture(scope="module")
def reference():
    return oracle.load_model(CHECKPOINT)


def chooser_of(rules, vocabulary, prompts=None):
    return Chooser(rules, prompts or [PROMPT] * len(rules), vocabulary, CPU)


def distribution(chooser, logits):
    """The probabilities that `choose` draws from; a greedy row has 1 at its token."""
    logits = chooser._process(logits.float())
    result = torch.zeros_like(logits).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
    for group in chooser._groups:
        result[group.rows] = group.probabilities(logits[group.rows])
    return result


def logits_of(kind, rows, vocabulary, seed):
    """Random logits: without ties, with many, as bfloat16 has them, all alike, half impossible."""
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    return {
        "random": logits,
        "tied": (logits * 2).round() / 2,
        "bfloat16": logits.bfloat16().float(),
        "alike": torch.zeros_like(logits),
        "half": logits.index_fill(1, torch.arange(0, vocabulary, 2), float("-inf")),
    }[kind]


def rules_of(vocabulary, rows, seed):
    """Rules that differ from row to row, with and without each filter."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*values):
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    return [
        replace(
            GREEDY,
            temperature=pick(1.0, 0.7, 0.3, 1.6),
            top_k=pick(0, 1, 5, 40, LIST, LIST + 1, 300, vocabulary + 9),
            top_p=pick(1.0, 0.95, 0.9, 0.75, 0.5, 0.1, 0.001),
            min_p=pick(0.0, 0.0, 0.02, 0.3, 1.0),
            repetition_penalty=pick(1.0, 1.3, 0.8),
            min_new_tokens=pick(0, 2),
        )
        for _ in range(rows)
    ]


def reference_scores(reference, rule, ids, prompt_tokens, logits):
    options = {
        "do_sample": True,
        "temperature": rule.temperature,
        "top_k": rule.top_k,
        "top_p": rule.top_p,
        "repetition_penalty": rule.repetition_penalty,
        "min_new_tokens": rule.min_new_tokens,
        "eos_token_id": list(rule.eos_token_ids),
    }
    if rule.min_p:
        options["min_p"] = rule.min_p
    processors = oracle.logits_processors(reference, prompt_tokens, **options)
    return processors(torch.tensor([ids]), logits[None].clone())[0]


@pytest.mark.parametrize("kind", ["random", "tied", "bfloat16", "alike", "half"])
@pytest.mark.parametrize("vocabulary", [9, 100, 1000])
def test_what_may_be_drawn_is_what_the_reference_leaves(reference, kind, vocabulary):
    rows = 60
    rules = rules_of(vocabulary, rows, seed=vocabulary)
    prompts = [[(i * 5 + j * j) % vocabulary for j in range(6)] for i in range(rows)]
    chooser = chooser_of(rules, vocabulary, prompts)
    histories = [list(ids) for ids in prompts]
    for step in range(3):  # before, at and after the end of min_new_tokens
        logits = logits_of(kind, rows, vocabulary, seed=step)
        probabilities = distribution(chooser, logits)
        for i, rule in enumerate(rules):
            scores = reference_scores(reference, rule, histories[i], len(prompts[i]), logits[i])
            expected, nonzero = scores.softmax(-1) > 0, probabilities[i] > 0
            # Which of several tokens alike stay is chance in the reference's sort; how many is not.
            ours, theirs = (
                probabilities[i][nonzero].sort().values,
                scores.softmax(-1)[expected].sort().values,
            )
            assert len(ours) == len(theirs), rule
            assert torch.allclose(ours / ours.sum(), theirs, atol=1e-6), rule
            if kind in ("random", "half"):
                assert torch.equal(nonzero, expected), rule
        chosen = chooser.choose(logits)
        for ids, token in zip(histories, chosen.tokens.tolist(), strict=True):
            ids.append(token)


@pytest.mark.parametrize("kind", ["random", "tied", "half"])
def test_a_row_does_not_depend_on_its_neighbours(kind):
    rules = [
        replace(rule, seed=i, temperature=rule.temperature * (i % 4 > 0))
        for i, rule in enumerate(rules_of(1000, 40, seed=5))
    ]
    logits = logits_of(kind, 40, 1000, seed=6)
    together = chooser_of(rules, 1000)
    first = distribution(together, logits)
    tokens = [together.choose(logits).tokens for _ in range(3)]
    for i, rule in enumerate(rules):
        alone = chooser_of([rule], 1000)
        assert torch.equal(distribution(alone, logits[i : i + 1])[0], first[i])
        for step in tokens:
            assert alone.choose(logits[i : i + 1]).tokens.item() == step[i]


def test_rows_that_leave_and_rows_that_join_change_nothing():
    rules = [replace(rule, seed=i) for i, rule in enumerate(rules_of(300, 12, seed=8))]
    rules[0] = replace(rules[0], repetition_penalty=1.0)
    logits = [logits_of("random", 12, 300, seed) for seed in range(3)]
    expected = [[] for _ in rules]
    whole = chooser_of(rules, 300)
    for step_logits in logits:
        for i, token in enumerate(whole.choose(step_logits).tokens.tolist()):
            expected[i].append(token)

    early, late = chooser_of(rules[:1], 300), chooser_of(rules[1:], 300)
    assert early.choose(logits[0][:1]).tokens.tolist() == [expected[0][0]]
    early.join(late)
    rest = torch.cat([logits[1][:1], logits[0][1:]])
    assert early.choose(rest).tokens.tolist() == [expected[0][1], *(e[0] for e in expected[1:])]
    early.select([5, 0, 7])
    rest = torch.stack([logits[1][5], logits[2][0], logits[1][7]])
    assert early.choose(rest).tokens.tolist() == [expected[5][1], expected[0][2], expected[7][1]]


def test_the_likeliest_token_is_what_top_k_1_draws():
    logits = logits_of("random", 50, 500, seed=1)
    rules = [replace(DRAWN, top_k=1, temperature=0.01 + i / 9, seed=i) for i in range(50)]
    greedy = chooser_of([replace(GREEDY, seed=i) for i in range(50)], 500)
    drawn = chooser_of(rules, 500)
    assert torch.equal(drawn.choose(logits).tokens, greedy.choose(logits).tokens)
    assert torch.equal(greedy.choose(logits).tokens, logits.argmax(-1))


def test_no_end_token_comes_before_min_new_tokens():
    logits = torch.zeros(3, 10)
    logits[:, 3], logits[:, 4], logits[:, 8] = 9.0, 8.0, 7.0
    rules = [
        replace(GREEDY, min_new_tokens=2),
        replace(GREEDY, min_new_tokens=2, eos_token_ids=(3,)),
        replace(GREEDY, min_new_tokens=2, eos_token_ids=()),
    ]
    chooser = chooser_of(rules, 10)
    tokens = [chooser.choose(logits).tokens.tolist() for _ in range(3)]
    assert tokens == [[8, 4, 3], [8, 4, 3], [3, 3, 3]]


COUNT = 16_000


@pytest.mark.parametrize("axis", ["seeds", "steps"])
@pytest.mark.parametrize(
    ("change", "possible_tokens"),
    [({}, 16), ({"temperature": 2.0}, 16), ({"top_k": 6}, 6), ({"top_p": 0.6}, None)],
)
def test_draws_follow_the_distribution(axis, change, possible_tokens):
    logits = logits_of("random", 1, 16, seed=3) / 3
    rules = [replace(DRAWN, seed=i if axis == "seeds" else 9, **change) for i in range(COUNT)]
    chooser = chooser_of(rules, 16)
    if axis == "steps":
        chooser.steps = torch.arange(COUNT)
    expected = distribution(chooser_of(rules[:1], 16), logits)[0].double() * COUNT
    counts = chooser.choose(logits.expand(COUNT, -1)).tokens.bincount(minlength=16)
    possible = expected > 0
    assert possible_tokens is None or int(possible.sum()) == possible_tokens
    assert counts[~possible].sum() == 0
    distance = ((counts - expected) ** 2 / expected)[possible].sum()
    # 15 degrees of freedom at most: above 37.7 once in a thousand times.
    assert distance < 37.7
    shifted = counts.roll(1)[possible]
    assert ((shifted - expected[possible]) ** 2 / expected[possible]).sum() > 500


def test_only_what_is_possible_is_drawn_at_the_ends_of_the_vocabulary():
    logits = torch.full((2000, 7), float("-inf"))
    logits[:, 3] = 1.0
    chooser = chooser_of([replace(DRAWN, seed=i) for i in range(2000)], 7)
    assert set(chooser.choose(logits).tokens.tolist()) == {3}


def test_log_probabilities_are_those_of_the_raw_logits():
    logits = logits_of("random", 3, 50, seed=2)
    rules = [
        replace(GREEDY, repetition_penalty=2.0, logprobs=3),
        replace(DRAWN, temperature=0.2, top_k=2, seed=5),
        replace(GREEDY, logprobs=99),
    ]
    raw = logits.log_softmax(-1)
    choice = chooser_of(rules, 50).choose(logits)
    assert torch.equal(choice.logprobs, raw.gather(1, choice.tokens[:, None])[:, 0])
    assert choice.top_ids.shape == (3, 50)
    best, ids = raw.sort(descending=True)
    assert torch.equal(choice.top_ids, ids)
    assert torch.equal(choice.top_logprobs, best)
    assert chooser_of(rules[1:2], 50).choose(logits[1:2]).top_ids is None


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12),
    st.floats(1.01, 3),
    st.data(),
)
def test_seen_tokens_become_less_likely_and_others_stay(values, penalty, data):
    logits = torch.tensor([values])
    seen = torch.tensor([[data.draw(st.booleans()) for _ in values]])
    result = penalize_repetition(logits, seen, torch.tensor([[penalty]]))
    assert torch.equal(result[~seen], logits[~seen])
    assert (result[seen] <= logits[seen]).all()
    positive = seen & (logits > 0)
    assert torch.allclose(result[positive] * penalty, logits[positive])
