"""The real command in a pseudo-terminal: what a person sees from the first second to the end."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from pathlib import Path

import pytest

from mediamill.jobs import start
from mediamill.model.tiny import CHECKPOINT
from tests.jobs.test_cli_run import SMALL, environment, write_manifest

pytestmark = pytest.mark.timeout(600)

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Session:
    """A command in a pseudo-terminal. shown: all that it has written, with the times."""

    def __init__(self, *arguments, cwd, columns=80, **variables):
        self.began = time.monotonic()
        self.shown, self.first_s = "", None
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            values = {**environment(), "TERM": "xterm-256color", **variables}
            os.execve(sys.executable, [sys.executable, "-m", "mediamill", *arguments], values)
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    def read_until(self, words=None, timeout_s=400):
        """Reads until the words have come, or to the end."""
        deadline = time.monotonic() + timeout_s
        while words is None or words not in self.shown:
            assert time.monotonic() < deadline, self.shown[-2000:]
            if not select.select([self._terminal], [], [], 1.0)[0]:
                continue
            try:
                data = os.read(self._terminal, 65536)
            except OSError:  # of Linux, at the end
                data = b""
            if not data:
                assert words is None, self.shown[-2000:]
                return
            if self.first_s is None:
                self.first_s = time.monotonic() - self.began
            self.shown += data.decode("utf-8", "replace")

    def press_ctrl_c(self):
        os.write(self._terminal, b"\x03")

    def end(self):
        """Returns the exit code."""
        self.read_until()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(status)


def arguments(manifest):
    return ["caption", manifest, "out", "--model", str(CHECKPOINT), "--prompt", "What is it?"]


def test_a_job_from_its_first_line_to_its_last(tmp_path, ray_cluster):
    manifest = write_manifest(tmp_path, 12, missing=1)
    job = [*arguments(manifest), *SMALL, "--limit", "11", "--address", ray_cluster]
    session = Session(*job, cwd=tmp_path, NO_COLOR="1")
    session.read_until("reading the manifest")
    assert "mediamill caption: starting" in session.shown.partition("reading")[0]
    code = session.end()
    text = " ".join(ESCAPE.sub("", session.shown).split())  # lines are wrapped
    assert code == 0, text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", session.shown)  # NO_COLOR
    order = [
        "reading the manifest",
        "12 rows, 0 finished",
        "starting Ray",
        "starting processes",
        "11 of 11 rows",
        "11 rows: 11 ok, 0 errors",
        "left for later: 1 rows; the same command",
        "output: ",
        f"look at it: mediamill report {tmp_path / 'out'}",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places), text
    for foreign in ("Warning", "logging.cc", "gcs_client", "INFO", "Traceback"):
        assert foreign not in text
    assert not (tmp_path / "out" / "_SUCCESS").exists()

    # The other row, by the same command without --limit, from a terminal that cannot be rewritten.
    job = [argument for argument in job if argument not in ("--limit", "11")]
    session = Session(*job, cwd=tmp_path, TERM="dumb")
    assert session.end() == 3, session.shown
    assert "\x1b" not in session.shown
    assert "1 error" in session.shown
    assert f"mediamill retry {tmp_path / 'out'}" in session.shown
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_ctrl_c_before_anything_has_begun_ends_at_once_and_leaves_nothing(tmp_path):
    manifest = write_manifest(tmp_path, 3)
    for moment in ("starting", "reading the manifest"):
        session = Session(*arguments(manifest), *SMALL, cwd=tmp_path)
        session.read_until(moment)
        pressed = time.monotonic()
        session.press_ctrl_c()
        assert session.end() == 130
        assert time.monotonic() - pressed < 20  # far less on a quiet machine
        assert "interrupted" in session.shown
        assert "Traceback" not in session.shown
        assert not (tmp_path / "out").exists()


def test_a_refused_job_leaves_nothing_and_tells_all_that_is_wrong(tmp_path):
    manifest = write_manifest(tmp_path, 3)
    job = ["caption", manifest, "out", "--model", "Qwen/Qwen2-VL-2B-Instruct", "--prompt", "?"]
    session = Session(*job, "limits.step_timeout_s=0.1", "generation.top_k=3", cwd=tmp_path)
    assert session.end() == 2
    lines = ESCAPE.sub("", session.shown).splitlines()
    mistakes = " ".join(line for line in lines if "error: " in line)
    for words in ("hf://Qwen/Qwen2-VL-2B-Instruct", "limits.step_timeout_s", "generation.top_k"):
        assert words in mistakes
    assert not (tmp_path / "out").exists()


def test_the_first_line_needs_no_library_and_goes_before_anything_else():
    assert {"atexit", "io", "os", "signal", "sys"} >= set(
        re.findall(r"^import (\w+)", Path(start.__file__).read_text(), re.M)
    )


def test_help_and_wrong_use_have_no_first_line(tmp_path):
    session = Session("caption", "--help", cwd=tmp_path)
    assert session.end() == 0
    assert session.shown.startswith("usage: mediamill caption")
    session = Session("captoin", cwd=tmp_path)
    assert session.end() == 2
    assert ESCAPE.sub("", session.shown).rpartition("\r")[2] in ("\n", "")
    assert "did you mean 'caption'" in session.shown
