"""`python -m mediamill.model`: answers of a real child process, descriptions, and mistakes."""

import array
import fcntl
import json
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from mediamill.model import __main__ as program
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.model.tiny.encode import clip_bytes, picture_bytes
from mediamill.model.tiny.scenes import draw_clip, draw_picture
from tests.checkpoints import Shape, write_checkpoint

ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-m", "mediamill.model"]


def run(*arguments, stdin=""):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    rng = np.random.default_rng(1)
    picture = draw_picture(rng, "two", 400, 300, supersample=2)
    clip = draw_clip(rng, 288, 288, 24, 2)
    folder = tmp_path_factory.mktemp("media")
    (folder / "a.png").write_bytes(picture_bytes(picture.frames[0], "png"))
    (folder / "b.mp4").write_bytes(clip_bytes(clip.frames))
    return picture, clip, folder


def test_a_picture_is_described(media):
    picture, _, folder = media
    done = run(CHECKPOINT, "--image", folder / "a.png", "--prompt", CAPTION_PROMPT)
    assert (done.returncode, done.stdout) == (0, f"{picture.caption}\n"), done.stderr
    assert done.stderr == ""


def test_a_clip_is_described_as_json_and_the_prompt_read_from_stdin(media):
    _, clip, folder = media
    done = run(
        CHECKPOINT, "--video", folder / "b.mp4", "--prompt", "-", "--json", "--show-receipt",
        stdin=CAPTION_PROMPT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["text"] == clip.caption
    assert facts["finish_reason"] == "stop"
    assert facts["receipts"][0]["frame_indices"] == [0, 6, 12, 18]
    assert facts["visual_tokens"] == facts["receipts"][0]["visual_tokens"]


# The rest runs in this process, which has imported torch already.


def call(capsys, *arguments):
    code = program.main(list(map(str, arguments)))
    return code, *capsys.readouterr()


def test_media_keep_the_order_given(media, capsys):
    folder = media[2]
    code, stdout, stderr = call(
        capsys, CHECKPOINT, "--video", folder / "b.mp4", "--image", folder / "a.png",
        "--num-frames", 2, "--prompt", "What?", "--system", "Be brief.", "--max-new-tokens", 2,
        "--show-receipt", "--add-vision-id", "--device", "cpu", "--dtype", "bfloat16",
        "--attention", "eager", "--mrope", "hf5", "--temperature", 1.5, "--top-k", 0, "--seed", 3,
    )  # fmt: skip
    assert code == 0
    assert stdout.strip()
    first, second = stderr.splitlines()
    assert first.startswith("video of 288 x 288 seen as ")
    assert ", 2 frames, " in first
    assert second.startswith("image of 400 x 300 seen as ")


def test_describe_says_what_the_folder_is_without_its_weights(tmp_path, capsys):
    folder = write_checkpoint(tmp_path / "model", Shape({"num_hidden_layers": 3, "strange": 1}))
    (folder / "model.safetensors").unlink()
    code, stdout, _ = call(capsys, folder, "--describe")
    assert code == 0
    lines = dict(line.split(": ", 1) for line in stdout.splitlines())
    assert lines["decoder"].startswith("3 layers of width 128, 4 heads (2 key-value) of 32")
    assert lines["unknown keys"] == "strange"
    assert lines["context"] == "2048 tokens"
    assert "eos_token_ids (508, 506)" in lines["generation"]
    assert "rope default, theta 20" in lines["positions"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: folder"),
        ([CHECKPOINT], "expected --prompt"),
        ([CHECKPOINT, "--prompt", "x", "--temperature", "warm"], "invalid float value: 'warm'"),
        ([CHECKPOINT, "--prompt", "x", "--temperature", "-1"], "temperature is -1.0, expected"),
        ([CHECKPOINT, "--prompt", "x", "--colour", "red"], "unrecognized arguments: --colour red"),
        ([CHECKPOINT, "--prompt", "x", "--image", "none.png"], "none.png: found no such file"),
        ([CHECKPOINT, "--prompt", "x", "--image", __file__], "is no known picture or video"),
        ([CHECKPOINT, "--prompt", "<|im_end|>"], "control string"),
        ([CHECKPOINT, "--prompt", "x", "--device", "abacus"], "--device abacus cannot be used"),
        ([CHECKPOINT, "--prompt", "x", "--dtype", "int3"], "dtype is 'int3', expected"),
        ([CHECKPOINT, "--prompt", "x", "--attention", "none"], "none"),
        ([CHECKPOINT, "--prompt", "x", "--mrope", "new"], "mrope is 'new', expected"),
        ([CHECKPOINT, "--prompt", "x", "--fps", "1", "--num-frames", "2"], "both fps"),
        (["no/such/folder", "--describe"], "no/such/folder: found no such folder"),
        ([ROOT, "--prompt", "x"], "is not a model folder: it has no config.json"),
    ],
)
def test_wrong_use_is_one_sentence(arguments, words, capsys):
    code, stdout, stderr = call(capsys, *arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert words in stderr


def test_ctrl_c_exits_130():
    with subprocess.Popen(
        [*COMMAND, str(CHECKPOINT), "--prompt", "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        child.stdin.write(b"What")
        child.stdin.flush()
        deadline = time.monotonic() + 60
        while _unread(child.stdin):  # until the child has come as far as to read its prompt
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == 130
        assert child.stderr.read() == b"interrupted\n"


def _unread(pipe):
    """Bytes in a pipe that nobody has read."""
    return array.array("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
