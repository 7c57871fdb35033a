"""Outputs that repeat themselves are found as they are made, and afterwards."""

import random

import pytest

from mediamill.model.chat import Chat
from mediamill.model.engine import Engine, Request
from mediamill.model.generation.loops import MAX_PERIOD, MIN_TOKENS, REPEATS, LoopFinder, loop_start
from mediamill.model.sampling import Sampling
from mediamill.model.tiny import CHECKPOINT


def first_stop(tokens: list[int]) -> int | None:
    finder = LoopFinder()
    stops = (number for number, token in enumerate(tokens, 1) if finder.add(token))
    return next(stops, None)


@pytest.mark.parametrize("period", [1, 2, 7, 21, 22, 64, 100, MAX_PERIOD])
@pytest.mark.parametrize("before", [0, 1, 50, 500])
def test_a_loop_is_found_as_soon_as_it_is_long_enough(period: int, before: int) -> None:
    rng = random.Random(period)
    head = [rng.randrange(1000, 50_000) for _ in range(before)]
    unit = [*range(period)]
    needed = max(MIN_TOKENS, REPEATS * period)
    tokens = [*head, *(unit * (needed // period + 1))]
    assert first_stop(tokens) == before + needed
    assert loop_start(tokens[: before + needed]) == before
    assert loop_start(tokens[: before + needed - 1]) is None


def test_what_repeats_less_is_no_loop() -> None:
    rng = random.Random(0)
    noise = [rng.randrange(50_000) for _ in range(2_000)]
    verse = [*range(60), 7, 7, 7] * 2
    period_too_long = [*range(MAX_PERIOD + 1)] * 5
    broken = ([1, 2, 3] * 20 + [9]) * 5  # its period is longer, and it repeats
    for tokens in (noise, verse, period_too_long, []):
        assert first_stop(tokens) is None
        assert loop_start(tokens) is None
    assert first_stop(broken) == REPEATS * 61


def test_both_agree_on_random_outputs() -> None:
    rng = random.Random(1)
    for _ in range(300):
        alphabet = rng.choice((1, 2, 3, 50))
        tokens = [rng.randrange(alphabet) for _ in range(rng.randrange(1, 90))]
        tokens += tokens[-rng.randrange(1, 40) :] * rng.randrange(0, 6)
        stop = first_stop(tokens)
        starts = (n for n in range(1, len(tokens) + 1) if loop_start(tokens[:n]) is not None)
        assert stop == next(starts, None)


def test_an_engine_ends_an_output_that_loops() -> None:
    """A high repetition bonus makes the tiny model say one token for ever."""
    engine = Engine.load(CHECKPOINT, device="cpu", batch_rows=2)
    chat = Chat.load(CHECKPOINT)
    ids = chat.processor.build_prompt(chat.processor.user_message("Describe the picture.", []), [])
    endless = Sampling(max_new_tokens=150, repetition_penalty=0.01, eos_token_ids=())
    stopped = Sampling(
        max_new_tokens=150, repetition_penalty=0.01, eos_token_ids=(), stop_loops=True
    )
    requests = [Request("whole", ids, (), endless), Request("cut", ids, (), stopped)]
    done = {completion.id: completion for completion in engine.generate(requests)}
    whole, cut = done["whole"], done["cut"]
    assert (whole.finish_reason, len(whole.output_ids)) == ("length", 150)
    assert cut.finish_reason == "loop"
    assert cut.output_ids == whole.output_ids[: len(cut.output_ids)]
    assert loop_start(cut.output_ids) is not None
    assert loop_start(cut.output_ids[:-1]) is None
