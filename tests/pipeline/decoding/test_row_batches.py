"""Rows that go to a decoding process together: each has its own answer, whatever the others are."""

import json
import random

import pytest

from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.decoding.decoder_pool import DecoderPool
from tests.media import jpeg
from tests.pipeline.decoding.hostile_processor import FACTORY, trap
from tests.pipeline.decoding.test_decoder_pool import FILES, MIB, ask, code, limits, open_fds


@pytest.fixture(scope="module")
def narrow():
    """One process, to which many rows go together."""
    made = DecoderPool({"checkpoint": str(CHECKPOINT)}, limits(60, 160 * MIB), FACTORY, 1)
    yield made
    made.close()


GOOD = {
    "receipts": [
        {
            "kind": "image",
            "sha256": "0" * 64,
            "height": 28,
            "width": 28,
            "frame_times_s": [],
            "frame_indices": [],
            "visual_tokens": 1,
            "source_height": 1,
            "source_width": 1,
            "notes": [],
            "bound_by": [],
            "seen_sha256": None,
        }
    ],
    "visuals": [{"kind": "image", "grid_thw": [1, 2, 2]}],
    "ids": [0],
    "failure": None,
    "data_bytes": 1,
}


@pytest.mark.parametrize("where", ["sent", "shared"])
@pytest.mark.parametrize(
    "words",
    [
        "",
        "[]",
        "[" * 100_000,
        json.dumps({**GOOD, "visuals": [{"kind": "image", "grid_thw": [1, 4, 4]}]}),
        json.dumps({**GOOD, "ids": [2**30]}),
    ],
)
def test_words_that_cannot_be_true_are_a_crash(narrow, words, where):
    assert code(ask(narrow, trap("reply", f"{where} {json.dumps(GOOD)}"))[0]) is None
    answers = ask(narrow, trap("reply", f"{where} {words}"), FILES["jpeg"])
    assert [code(one) for one in answers] == ["decode_crashed", None]


def test_more_data_than_were_sent_are_a_crash(narrow):
    """Of a sound answer, where there would be enough in the memory that is shared."""
    words = json.dumps({**GOOD, "ids": [1000]})
    assert code(ask(narrow, trap("reply", f"shared {words}"))[0]) is None
    assert code(ask(narrow, trap("reply", f"sent {words}"))[0]) == "decode_crashed"


@pytest.mark.parametrize(
    "raw",
    [
        "00ffffffff00000000",  # a header beyond the limit
        "0000000002ffffffff7b7d",  # data beyond it
        "ff00000002000000007b7d",  # flags that there are not
        "0000000002000000007b7d",  # no answer
    ],
)
def test_bytes_that_are_no_frame_are_a_crash(narrow, raw):
    fds = open_fds()
    answers = ask(narrow, trap("send", raw), FILES["jpeg"])
    assert [code(one) for one in answers] == ["decode_crashed", None]
    assert open_fds() <= fds + 4  # a worker's connection, memory, pipe and doorbell


def test_what_changes_after_it_was_checked_was_never_looked_at(narrow):
    header = json.dumps({**GOOD, "ids": [256]})
    for answer in ask(narrow, *[trap("flicker", header)] * 6):
        if code(answer) is None:
            assert answer.ids[0].min() >= 0
        else:
            assert code(answer) == "decode_crashed"


def test_a_row_cannot_change_the_answers_before_it(narrow):
    """Not even those of its own message, which nobody may have read yet."""
    files = [jpeg(56, 84, seed=seed) for seed in range(24)]
    expected = [bytes(one.patches) for one in ask(narrow, *files)]
    for place in (1, 5, 12, 23):
        rows = [*files[:place], trap("scribble"), *files[place:]]
        answers = ask(narrow, *rows)
        assert code(answers.pop(place)) == "decode_crashed"
        assert [bytes(one.patches) for one in answers] == expected


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_go_together_are_as_good_as_alone(narrow, seed):
    """Whatever ends a message, every row has its own answer, and those at fault have an error."""
    draw = random.Random(seed)
    kinds = {
        "small": (jpeg(56, 84, seed=seed), None),
        "large": (jpeg(700, 900, seed=seed), None),
        "clip": (FILES["clip"], None),
        "cut": (FILES["text"], "decode_unsupported"),
        "crash": (trap("abort"), "decode_crashed"),
        "late": (trap("late", 0.3), "decode_corrupt"),
    }
    alone = {name: ask(narrow, data)[0] for name, (data, _) in kinds.items()}
    names = draw.choices(list(kinds), [40, 4, 4, 8, 1, 1], k=100)
    answers = ask(narrow, *[kinds[name][0] for name in names])
    for name, answer in zip(names, answers, strict=True):
        assert code(answer) == kinds[name][1], name
        assert answer.patches == alone[name].patches
        assert answer.receipts == alone[name].receipts


def test_an_answer_that_stops_halfway_is_a_crash_and_costs_the_neighbours_nothing(
    narrow, monkeypatch
):
    monkeypatch.setattr("mediamill.pipeline.decoding.fork_server._REPLY_TIMEOUT_S", 1.0)
    ask(narrow, trap("abort"))  # it holds for processes that are new
    answers = ask(narrow, trap("send", "00"), FILES["jpeg"], FILES["clip"])
    assert [code(one) for one in answers] == ["decode_crashed", None, None]
