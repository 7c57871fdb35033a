"""What happens in a job, as exit code and sentence."""

import os
import signal
import sys

import pytest

from mediamill.jobs.cli import exit_code
from mediamill.pipeline.faults import Drained, PermanentError, RunError, root_cause
from mediamill.schemas.errors import JobError

RESUME = "to go on, run the same command again: rows that are finished are kept"
MENDED = "once that is mended, the same command goes on: rows that are finished are kept"


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
    assert exit_code(raising(JobError("m.parquet: no column 'id'", "m.parquet: no 'uri'"))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: m.parquet: no column 'id'\nerror: m.parquet: no 'uri'\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("the engine died\nat step 3"), "RuntimeError: the engine died"),
        (MemoryError(), "MemoryError"),
        (RemoteError("anything", OSError("disk full")), "OSError: disk full"),
        (RunError("another run works on out"), "another run works on out"),
        (Exception("gone: https://u:SECRET@h/a?sig=SECRET"), "Exception: gone: https://h/a"),
    ],
)
def test_a_failure_is_1_and_one_line(capsys, error, reason):
    assert exit_code(raising(error)) == 1
    said = capsys.readouterr().err
    assert said == f"error: the job failed: {reason} (-v shows the traceback); {RESUME}\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RemoteError("Traceback (most recent call last):\n  x\nValueError: bad weights\n"),
            "ValueError: bad weights",
        ),
        (
            RemoteError("Traceback:\n  x\nModuleNotFoundError: No module named 'x'\n"),
            "ModuleNotFoundError: No module named 'x'",
        ),
        (RemoteError("Traceback\n  x\nmediamill.schemas.errors.JobError: o: no o\n"), "o: no o"),
        (RemoteError("Traceback\n  x\npyarrow.lib.ArrowInvalid: bad\n"), "ArrowInvalid: bad"),
        (
            RemoteError(
                "died because of an error raised in its creation task, a\n  x\nImportError: y"
            ),
            "ImportError: y",
        ),
        (RemoteError("anything", KeyError("x")), "KeyError: 'x'"),
        (PermanentError("an engine could not be loaded"), "an engine could not be loaded"),
    ],
)
def test_a_failure_that_would_come_again_is_not_advised_to_be_tried_again(capsys, error, reason):
    assert exit_code(raising(error)) == 1
    said = capsys.readouterr().err
    assert said == f"error: the job failed: {reason} (-v shows the traceback); {MENDED}\n"


def test_a_job_that_turns_out_to_be_impossible_is_2_without_advice(capsys):
    assert exit_code(raising(PermanentError("model: found 3 layers", in_job=True))) == 2
    assert capsys.readouterr().err == "error: model: found 3 layers\n"


def test_a_program_that_stops_the_job_is_1(capsys):
    assert exit_code(raising(Drained("what had begun is finished"))) == 1
    assert capsys.readouterr().err == f"terminated: what had begun is finished; {RESUME}\n"


@pytest.mark.parametrize("kind", [JobError, RuntimeError, OSError, Drained, PermanentError])
@pytest.mark.parametrize("verbose", [False, True])
def test_no_message_is_long_or_secret(capsys, kind, verbose):
    text = f"s3://k:SE/CRET@b/x {'A' * 100_000} https://u:SECRET@h/ \ud800"
    assert exit_code(raising(kind(text)), verbose) in (1, 2)
    said = capsys.readouterr().err
    assert "SE/CRET" not in said
    assert "SECRET" not in said
    assert all(len(line) <= 2000 for line in said.splitlines())
    if kind is not JobError and not verbose:
        assert said.endswith((f"; {RESUME}\n", f"; {MENDED}\n"))


def test_walks_along_causes_end_on_cycles():
    first, second = OSError("disk full"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert root_cause(first) == "RuntimeError: second"
    alone = OSError("alone")
    alone.__cause__ = alone
    assert root_cause(alone) == "OSError: alone"
    remote = RemoteError("self")
    remote.cause = remote
    assert root_cause(remote) == "RemoteError: self"
    error = OSError("0")
    for number in range(100_000):
        after = OSError(str(number))
        after.__cause__ = error
        error = after
    assert root_cause(error).startswith("OSError: ")


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


def test_a_command_that_has_nothing_to_resume_gives_no_such_advice(capsys):
    def action():
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert exit_code(action, resume="") == 143
    assert capsys.readouterr().err == "terminated\n"


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
