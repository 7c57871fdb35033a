"""What happens in a job, as exit code and sentence."""

import os
import signal
import sys

import pytest

from mediamill.jobs.cli import exit_code
from mediamill.schemas.errors import JobError

RESUME = "to go on, run the same command again: rows that are finished are kept"


@pytest.fixture(autouse=True)
def _own_handler():
    """`exit_code` takes SIGTERM over for good; the tests' process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class RemoteError(Exception):
    """Shaped as Ray's: a whole traceback as text, and the error itself as `cause`."""

    def __init__(self, text, cause=None):
        super().__init__(text)
        self.cause = cause


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize("code", [0, 3, 1])
def test_the_actions_own_code(code):
    assert exit_code(lambda: code) == code


def test_a_job_error_is_2_and_a_line_for_each_mistake(capsys):
    assert exit_code(raising(JobError("m.parquet: no column 'id'\nm.parquet: no 'uri'"))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: m.parquet: no column 'id'\nerror: m.parquet: no 'uri'\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("the engine died\nat step 3"), "RuntimeError: the engine died"),
        (MemoryError(), "MemoryError"),
        (
            RemoteError("Traceback (most recent call last):\n  x\nValueError: bad weights\n"),
            "ValueError: bad weights",
        ),
        (RemoteError("anything", OSError("disk full")), "OSError: disk full"),
    ],
)
def test_a_failure_is_1_and_one_line(capsys, error, reason):
    assert exit_code(raising(error)) == 1
    said = capsys.readouterr().err
    assert said == f"error: the job failed: {reason} (-v shows the traceback); {RESUME}\n"


def test_verbose_shows_the_traceback(capsys):
    assert exit_code(raising(RuntimeError("no")), verbose=True) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == f"error: the job failed: RuntimeError: no; {RESUME}"


def test_ctrl_c_is_130(capsys):
    def action():
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    assert exit_code(action) == 130
    assert capsys.readouterr().err == f"interrupted; {RESUME}\n"


def test_sigterm_unwinds_and_is_143(capsys):
    cleaned = []

    def action():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)
        return 0

    assert exit_code(action) == 143
    assert cleaned == [True]
    assert capsys.readouterr().err == f"terminated; {RESUME}\n"


def test_sigterm_as_ray_hands_it_on_is_143_too():
    assert exit_code(lambda: sys.exit(signal.SIGTERM)) == 143


def test_help_and_wrong_use_keep_argparses_codes():
    assert exit_code(lambda: sys.exit(0)) == 0
    assert exit_code(lambda: sys.exit(2)) == 2
    assert exit_code(lambda: sys.exit(None)) == 0
