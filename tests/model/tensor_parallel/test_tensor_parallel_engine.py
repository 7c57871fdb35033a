"""An engine over two processes: its answers, and what becomes of it when a process dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from mediamill.model.engine import Engine, Request
from mediamill.model.errors import ModelError
from mediamill.model.sampling import Sampling
from mediamill.model.tensor_parallel.request_codec import decode_request, encode_request
from mediamill.model.tensor_parallel.tensor_parallel_engine import (
    BrokenRanksError,
    TensorParallelEngine,
)
from mediamill.model.tiny import CHECKPOINT
from tests import processes
from tests.model.json_schemas import SCHEMAS, text
from tests.model.prompts import prompt

ROOT = Path(__file__).parents[3]
SCHEMA = text(SCHEMAS["nested"])


def requests():
    made = [prompt(seed, [("image", (1, 4, 6))] * (seed % 3)) for seed in range(6)]
    sampling = Sampling(max_new_tokens=10, eos_token_ids=(), logprobs=2)
    return [
        *(Request(f"g{i}", p.ids, p.visuals, sampling) for i, p in enumerate(made)),
        Request("j", made[4].ids, made[4].visuals, Sampling(temperature=1.5, json_schema=SCHEMA)),
        Request("s", made[1].ids, made[1].visuals, mode="score", continuations=[[5, 6], [7]]),
        Request("e", made[2].ids, made[2].visuals, mode="embed", normalize=True),
        Request("t", made[2].ids, made[2].visuals, mode="embed", pool="vision_tower"),
        Request("wrong", [1, 518, 2], (), sampling),
        Request("long", [1] * 5000, (), sampling),
    ]


def plain(completion):
    return (completion.output_ids, completion.finish_reason, completion.error)


@pytest.fixture
def pair():
    died = threading.Event()
    engine = TensorParallelEngine.start(
        CHECKPOINT, 2, "cpu", dtype="float32", on_death=lambda reason: died.set(), silence_s=3.0
    )
    engine.died = died
    yield engine
    engine.close()


def test_two_ranks_answer_as_one_engine_and_a_death_breaks_them(pair):
    single = Engine.load(CHECKPOINT, "cpu", "float32")
    for round_ in range(2):
        want = {one.id: one for one in single.generate(requests())}
        got = {one.id: one for one in pair.generate(requests())}
        assert {k: plain(v) for k, v in got.items()} == {k: plain(v) for k, v in want.items()}
        for mine, theirs in zip(got["s"].scores, want["s"].scores, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        for name in "et":
            assert got[name].embedding == pytest.approx(want[name].embedding, abs=1e-4)
        # And again, after some were cancelled and the rest forgotten.
        if not round_:
            for request in requests()[:4]:
                pair.add(request)
            pair.step()
            assert pair.cancel("g1")
            assert any(one.finish_reason == "cancelled" for one in pair.step())
            with pytest.raises(ValueError, match="must differ"):
                pair.add(requests()[0])
            pair.reset()
    [other] = pair.processes
    os.kill(other, signal.SIGKILL)
    assert pair.died.wait(10)
    with pytest.raises(BrokenRanksError, match="signal 9"):
        list(pair.generate(requests()))
    assert not processes.wait_for_end([other], 0)


def test_a_rank_that_hangs_is_noticed_and_ended(pair):
    [other] = pair.processes
    os.kill(other, signal.SIGSTOP)
    assert pair.died.wait(15)
    assert not processes.wait_for_end([other], 0)
    with pytest.raises(BrokenRanksError, match="silent"):
        pair.add(requests()[0])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_lost_while_it_loads_is_noticed_in_seconds(how):
    """The first rank waits for it at the meeting, which has a patience of minutes."""
    mine = os.getpid()

    def strike():
        while not (others := [pid for pid in processes.descendants(mine) if is_rank(pid)]):
            time.sleep(0.01)
        os.kill(others[0], how)

    def is_rank(pid):
        return pid not in before and "mediamill.model.tensor_parallel.worker" in processes.title(
            pid
        )

    before = processes.descendants(mine)
    threading.Thread(target=strike, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(BrokenRanksError, match=r"signal 9|silent|is gone"):
        TensorParallelEngine.start(
            CHECKPOINT, 2, "cpu", dtype="float32", timeout_s=300, silence_s=2.0
        )
    assert time.monotonic() - began < 60  # a fifth of what it would wait by itself
    assert not processes.descendants(mine) - before


def test_no_rank_outlives_its_leader(tmp_path):
    code = f"""
from mediamill.model.tensor_parallel.tensor_parallel_engine import TensorParallelEngine
engine = TensorParallelEngine.start({str(CHECKPOINT)!r}, 2, "cpu", dtype="float32")
print("ready", flush=True)
import time; time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as leader:
        try:
            assert leader.stdout.readline() == "ready\n"
            others = processes.descendants(leader.pid)
            assert others
            os.kill(min(others), signal.SIGSTOP)  # a stopped one cannot notice anything by itself
        finally:
            leader.kill()
    assert not processes.wait_for_end(others, 10)


def test_what_cannot_start_says_why(tmp_path):
    with pytest.raises(ModelError, match="num_attention_heads 4"):
        TensorParallelEngine.start(CHECKPOINT, 3, "cpu")
    with pytest.raises(ValueError, match="GPUs"):
        TensorParallelEngine.start(CHECKPOINT, 64, "cuda")
    with pytest.raises(ModelError):
        TensorParallelEngine.start(tmp_path, 2, "cpu")


def test_a_request_comes_over_as_it_was():
    for request in requests():
        copy = decode_request(encode_request(request))
        for name in ("id", "mode", "normalize", "media_names", "sampling"):
            assert getattr(copy, name) == getattr(request, name)
        assert list(copy.input_ids) == list(request.input_ids)
        assert [list(c) for c in copy.continuations] == [list(c) for c in request.continuations]
        for mine, theirs in zip(copy.visuals, request.visuals, strict=True):
            assert (mine.kind, mine.grid_thw) == (theirs.kind, theirs.grid_thw)
            assert torch.equal(mine.patches, theirs.patches)
