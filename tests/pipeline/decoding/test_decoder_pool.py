"""Decoding in workers: the same result as in this process, whatever happens to a worker."""

import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from mediamill.model.errors import MediaError, PromptError
from mediamill.model.media.limits import MediaLimits
from mediamill.model.processor import Processor
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.decoding.decoder_pool import (
    DecodeRequest,
    DecoderPool,
    MediumRequest,
)
from mediamill.schemas.job import Limits
from tests import processes
from tests.media import animation, audio_only, cut, draw, encode, jpeg, numbered_frames, video
from tests.pipeline.decoding.hostile_processor import FACTORY, trap

MIB = 1024**2
CHAT = {"prompt": CAPTION_PROMPT, "system": None}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="held on Linux only")


def limits(timeout_s, max_bytes=4096 * MIB):
    return Limits(decode_timeout_s=timeout_s, decode_bytes=max_bytes)


@pytest.fixture(scope="module")
def decoder():
    made = DecoderPool({"checkpoint": str(CHECKPOINT)}, limits(60, 160 * MIB), FACTORY)
    yield made
    made.close()


def ask(decoder, *contents, chat=CHAT):
    """One row for each content."""
    questions = [
        DecodeRequest([MediumRequest(one if isinstance(one, Path) else memoryview(one))], [chat])
        for one in contents
    ]
    return decoder.prepare(questions)


def fact(decoder, name):
    """A fact about a worker."""
    (answer,) = ask(decoder, trap("report", name))
    return int(answer.failure.message.removeprefix("RuntimeError: "))


def code(answer):
    return answer.failure and answer.failure.code


def open_fds():
    return len(list(Path("/dev/fd").iterdir()))


def gone(process, seconds=20.0):
    """Whether a process ends in time; one that nobody has waited for has ended too."""
    return not processes.wait_for_end([process], seconds)


FILES = {
    "jpeg": jpeg(),
    "turned": jpeg(orientation=6),
    "large": jpeg(700, 900),
    "transparent": encode(Image.fromarray(draw(60, 80, 4)), "PNG"),
    "animation": animation(),
    "clip": video(numbered_frames(9, 64, 96)),
    "cut": cut(jpeg()),
    "cut clip": cut(video(numbered_frames(9, 64, 96))),
    "sound": audio_only(),
    "text": b"no picture at all",
    "empty": b"",
    "long": encode(Image.new("RGB", (3000, 10)), "PNG"),
}


@pytest.fixture(scope="module")
def processor():
    return Processor.load(CHECKPOINT, limits=MediaLimits())


@pytest.mark.parametrize("spooled", [False, True])
def test_the_answer_is_what_this_process_would_have_found(decoder, processor, tmp_path, spooled):
    windows = [(None, None, None), ("video", 0.2, 0.6), ("image", None, None)]
    cases = [(name, window) for name in FILES for window in windows]
    questions = []
    for name, window in cases:
        content = memoryview(FILES[name])
        if spooled:
            content = tmp_path / name
            content.write_bytes(FILES[name])
        questions.append(DecodeRequest([MediumRequest(content, *window)], [CHAT]))
    for (name, window), answer in zip(cases, decoder.prepare(questions), strict=True):
        try:
            visual, receipt = processor.prepare_media(FILES[name], *window)
            messages = processor.user_message(CAPTION_PROMPT, [visual.kind])
            ids = processor.build_prompt(messages, [visual])
        except (MediaError, PromptError) as error:
            expected = (error.code, str(error))
        else:
            expected = None
        found = answer.failure and (answer.failure.code, answer.failure.message)
        assert found == expected, (name, window)
        if expected is not None:
            continue
        assert answer.patches == visual.patches.numpy().tobytes()
        assert [(one.kind, one.grid_thw) for one in answer.visuals] == [
            (visual.kind, visual.grid_thw)
        ]
        assert [one.tolist() for one in answer.ids] == [ids]
        (found,) = answer.receipts
        assert found == receipt


def test_several_media_of_a_row_lie_one_after_the_other(decoder, processor):
    names = ["jpeg", "clip", "large"]
    media = [MediumRequest(memoryview(FILES[name])) for name in names]
    seen = [processor.prepare_media(FILES[name]) for name in names]
    chat = {"messages": processor.user_message("Compare.", [visual.kind for visual, _ in seen])}
    (answer,) = decoder.prepare([DecodeRequest(media, [chat, CHAT], ["a dog", ""])])
    assert answer.patches == b"".join(visual.patches.numpy().tobytes() for visual, _ in seen)
    assert [one.sha256 for one in answer.receipts] == [one.sha256 for _, one in seen]
    visuals = [visual for visual, _ in seen]
    messages = processor.user_message(CHAT["prompt"], [one.kind for one in visuals], CHAT["system"])
    assert [one.tolist() for one in answer.ids] == [
        processor.build_prompt(chat["messages"], visuals),
        processor.build_prompt(messages, visuals),
        processor.tokenizer.encode("a dog"),
        [],
    ]


def test_a_prompt_that_cannot_be_built_leaves_the_receipts(decoder):
    bad = {"prompt": "<|im_end|>", "system": None}
    mismatch = {"messages": [{"role": "user", "content": "no picture mentioned"}]}
    surrogate = {"messages": [{"role": "user\ud800", "content": "x"}]}
    for chat in (bad, mismatch, surrogate):
        (answer,) = ask(decoder, FILES["jpeg"], chat=chat)
        assert code(answer) == "prompt_invalid"
        assert answer.receipts[0].kind == "image"
        assert not answer.patches


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (trap("signal", "SIGKILL"), "SIGKILL"),
        (trap("signal", "SIGBUS"), "SIGBUS"),
        (trap("read_nothing"), "SIGSEGV"),
        (trap("abort"), "SIGABRT"),
        (trap("exit", 3), "exit status 3"),
    ],
)
def test_a_crash_costs_its_own_row_alone(decoder, harm, words):
    rows = [FILES["jpeg"], harm, FILES["clip"], harm, FILES["jpeg"]]
    answers = ask(decoder, *rows)
    assert [code(one) for one in answers] == [None, "decode_crashed", None, "decode_crashed", None]
    assert words in answers[1].failure.message
    assert answers[0].patches == answers[4].patches


def test_a_row_whose_process_was_ended_from_outside_is_tried_again(decoder, tmp_path):
    (answer,) = ask(decoder, trap("crash_once", tmp_path / "marker"))
    assert answer.failure.message == "ValueError: survived crash_once"


def test_an_error_that_is_its_own_cause_costs_its_row_alone(decoder):
    (answer,) = ask(decoder, trap("own_cause"))
    assert (code(answer), answer.failure.message) == ("decode_corrupt", "ValueError: its own cause")


def test_a_worker_that_is_ended_between_two_rows_costs_nothing(decoder):
    for _ in range(3):
        process = fact(decoder, "pid")
        os.kill(process, signal.SIGKILL)
        assert gone(process)
        assert [code(one) for one in ask(decoder, *[FILES["jpeg"]] * 3)] == [None] * 3


def test_a_hang_is_ended_at_its_deadline():
    impatient = DecoderPool({"checkpoint": str(CHECKPOINT)}, limits(4, 160 * MIB), FACTORY)
    try:
        ask(impatient, *[FILES["jpeg"]] * 20)  # from now on several rows go together
        rows = [FILES["jpeg"]] * 6
        rows[1], rows[4] = trap("hang"), trap("ring")
        answers = ask(impatient, *rows)
        late = [number for number, one in enumerate(answers) if code(one) is not None]
        assert late == [1, 4]
        assert [code(answers[number]) for number in late] == ["decode_timeout"] * 2
        assert "limits.decode_timeout_s" in answers[1].failure.message
        assert code(ask(impatient, FILES["jpeg"])[0]) is None
    finally:
        impatient.close()


@LINUX
@pytest.mark.parametrize("way", ["numpy", "torch", "python", "malloc"])
def test_memory_beyond_the_limit_is_refused(decoder, way):
    fits, bomb = trap(way, 100 * MIB), trap(way, 200 * MIB)
    answers = ask(decoder, fits, bomb, fits, FILES["jpeg"])
    assert [code(one) for one in answers[:2]] == ["decode_corrupt", "decode_too_large"]
    assert [code(one) for one in answers[2:]] == ["decode_corrupt", None]
    assert "survived" in answers[0].failure.message
    assert "limits.decode_bytes" in answers[1].failure.message


@LINUX
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_real_picture_beyond_the_ceiling_is_refused(decoder, form):
    large = encode(Image.new("RGB", (8000, 8000)), form)
    small = encode(Image.new("RGB", (800, 800)), form)
    answers = ask(decoder, large, small)
    assert [code(one) for one in answers] == ["decode_too_large", None]


def test_media_beyond_the_ceiling_are_not_even_sent(decoder):
    (answer,) = ask(decoder, bytes(161 * MIB))
    assert code(answer) == "decode_too_large"
    assert "limits.decode_bytes" in answer.failure.message


@LINUX
def test_what_a_row_leaks_is_no_other_rows_affair(decoder):
    rows = [trap("leak", 90 * MIB), trap("numpy", 120 * MIB)] * 4
    assert [code(one) for one in ask(decoder, *rows)] == ["decode_corrupt"] * 8


@LINUX
def test_a_worker_that_has_grown_is_replaced():
    decoder = DecoderPool({"checkpoint": str(CHECKPOINT)}, limits(60), FACTORY, workers=1)
    try:
        ask(decoder, FILES["jpeg"])
        first = fact(decoder, "pid")
        ask(decoder, trap("numpy", 300 * MIB))
        assert fact(decoder, "pid") == first
        ask(decoder, trap("leak", 300 * MIB))
        assert fact(decoder, "pid") != first
        assert gone(first)
    finally:
        decoder.close()


def test_no_file_is_written_and_nothing_is_printed(decoder, tmp_path, capfd):
    (answer,) = ask(decoder, trap("write", tmp_path / "file"))
    assert "OSError" in answer.failure.message
    assert not (tmp_path / "file").exists() or not (tmp_path / "file").stat().st_size
    ask(decoder, trap("print", "noise of a library"))
    assert capfd.readouterr() == ("", "")


@LINUX
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="calls not known")
def test_the_network_programs_and_other_processes_are_out_of_reach(decoder, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        harms = [
            trap("connect", server.getsockname()[1]),
            trap("run", sys.executable),
            trap("remove", file),
            trap("kill", os.getpid()),
        ]
        answers = ask(decoder, *harms)
    assert [code(one) for one in answers] == ["decode_corrupt"] * 4
    assert all("Operation not permitted" in one.failure.message for one in answers)
    assert file.exists()


def test_rows_and_crashes_leave_no_file_descriptors_behind(decoder):
    ask(decoder, FILES["jpeg"], FILES["jpeg"])
    fds = open_fds()
    for _ in range(5):
        ask(decoder, trap("abort"), *[FILES["large"]] * 5)
    assert open_fds() <= fds


def test_threads_share_the_processes(decoder):
    """Each gets its own rows' answers, and none waits for the other's long ones."""
    shas = {name: ask(decoder, FILES[name])[0].receipts[0].sha256 for name in ("jpeg", "clip")}
    found = {}

    def work(name):
        answers = ask(decoder, *[FILES[name]] * 40)
        found[name] = {one.receipts[0].sha256 for one in answers}

    threads = [threading.Thread(target=work, args=(name,)) for name in shas]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == {name: {sha} for name, sha in shas.items()}


@LINUX
def test_the_fork_server_has_one_thread(decoder):
    assert len(list(Path(f"/proc/{decoder.fork_server_pid}/task").iterdir())) == 1


@LINUX
def test_a_fork_server_that_dies_is_started_again_and_takes_its_workers_along(decoder):
    fork_server, worker = decoder.fork_server_pid, fact(decoder, "pid")
    assert fact(decoder, "parent") == fork_server
    os.kill(fork_server, signal.SIGKILL)
    assert gone(worker)
    assert [code(one) for one in ask(decoder, *[FILES["jpeg"]] * 3)] == [None] * 3
    assert decoder.fork_server_pid != fork_server


_OWNER = """
import sys, threading, time
from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.decoding.decoder_pool import *
from mediamill.schemas.job import Limits
from tests.pipeline.decoding.hostile_processor import FACTORY, trap
decoder = DecoderPool({"checkpoint": str(CHECKPOINT)}, Limits(decode_timeout_s=600), FACTORY)
def row(data): return DecodeRequest([MediumRequest(memoryview(data))])
for answer in decoder.prepare([row(trap("report", "pid"))]):
    print(decoder.fork_server_pid, answer.failure.message.split()[-1], flush=True)
threading.Thread(target=decoder.prepare, args=([row(trap("hang"))] * 2,), daemon=True).start()
time.sleep(0.5)
print("hangs", flush=True)
time.sleep(600)
"""


@LINUX
def test_nothing_survives_the_process_that_asked():
    owner = subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, text=True)
    with owner:
        fork_server, worker = map(int, owner.stdout.readline().split())
        assert owner.stdout.readline() == "hangs\n"
        children = Path(f"/proc/{fork_server}/task/{fork_server}/children").read_text().split()
        assert str(worker) in children
        owner.kill()
        owner.wait()
        assert gone(fork_server)
        assert all(gone(int(one)) for one in children)


def test_a_checkpoint_that_cannot_be_used_is_an_error_at_once(tmp_path):
    from mediamill.model.errors import ModelError

    with pytest.raises(ModelError, match=r"config\.json"):
        DecoderPool({"checkpoint": str(tmp_path)}, Limits())
