"""What the log of a submitted job says of it, and the view that it gives."""

import io
import json
from dataclasses import asdict, dataclass, field

import pytest

from mediamill.jobs.cluster.following import LogClock, LogView
from mediamill.jobs.cluster.job_log import Lines, is_of_ray, read_log
from mediamill.jobs.cluster.remote_job import print_job, print_jobs, remote_job
from mediamill.jobs.progress.layout import Title
from mediamill.jobs.progress.reporter import MANIFEST, JsonReporter
from mediamill.jobs.progress.terminal import Screen, TerminalReporter
from mediamill.schemas import progress as p
from mediamill.schemas.progress import Progress

RAY_LINES = [
    "Running entrypoint for job one: sh run_job.sh",
    "2026-11-30 19:58:13,807\tINFO worker.py:1927 -- Connecting to existing Ray cluster",
    "[2026-11-30 19:51:53,036 I 17904 17904] logging.cc:303: Set ray log level",
    "(raylet) The node with node id: 4af6 has been marked dead",
    "(pid=812) Traceback",
    "/site-packages/ray/data/x.py:12: UserWarning: The minimum number of concurrent actors",
]


@dataclass(frozen=True)
class Info:
    """As Ray's client tells of a job."""

    submission_id: str = "one"
    status: str = "RUNNING"
    message: str = "Job is currently running."
    driver_exit_code: int | None = None
    start_time: int | None = 1_796_068_412_669
    end_time: int | None = None
    metadata: dict[str, str] = field(
        default_factory=lambda: {"job": "caption", "output": "s3://b/out", "grace_s": "60"}
    )


@pytest.fixture
def log():
    """The log of a driver up to its rows, as its own reporter writes it."""
    seconds = [0.0]
    out = io.StringIO()
    reporter = JsonReporter(out, clock=lambda: seconds[0])
    reporter.begin(MANIFEST)
    seconds[0] = 20.0
    reporter.end({"rows": 300, "finished": 100})
    reporter.notes(["column 'x' is not read"])
    for phase, at in ((p.RAY, 21.0), (p.PROCESSES, 25.0), (p.MODEL, 30.0), (p.ROWS, 40.0)):
        seconds[0] = at
        done = 160 if phase == p.ROWS else 100
        reporter(
            Progress(
                300, done, 100, ok=done - 100, phase=phase, rate_rows_s=12.0, eta_s=11.0, written=5
            )
        )
    reporter.close()
    return "\n".join([*RAY_LINES, out.getvalue()])


def test_the_end_of_a_log_says_how_far_a_job_is(log):
    found = read_log(log.split("\n")[-4:])
    assert (found.progress.rows_done, found.phase, found.stopping) == (160, p.ROWS, False)
    assert found.text == ""
    stopped = f'{log}{{"event": "stopping", "grace_s": 60.0}}\nterminated: what had begun'
    assert read_log(stopped.split("\n")).stopping
    assert read_log(stopped.split("\n")).text == "terminated: what had begun"


def test_damaged_lines_are_text_or_nothing():
    lines = ['{"event": "progress", "rows_to', '{"event": 3}', '{"event": "progress", "rows": 1}']
    assert read_log(lines).progress is None


def test_lines_of_ray_are_told_from_those_of_a_job():
    assert all(is_of_ray(line) for line in RAY_LINES)
    for line in ("3000 rows: 2999 ok, 1 errors", "error: /out: the disk is full", "", "note: a"):
        assert not is_of_ray(line)


def test_lines_come_in_pieces():
    lines = Lines()
    assert [lines.add(piece) for piece in ("a", "b\nc\n", "", "d")] == [[], ["ab", "c"], [], []]
    assert (lines.end(), lines.end()) == (["d"], [])


def shown(log, verbose=False):
    screen, out = io.StringIO(), io.StringIO()
    clock = LogClock(lambda: 0.0)
    title = Title("caption", "out/")
    reporter = TerminalReporter(screen, title, Screen(screen, lambda: (100, 40)), clock)
    view = LogView(reporter, clock, out, verbose)
    for start in range(0, len(log), 7):
        view.write(log[start : start + 7])
    view.end()
    return screen.getvalue(), out.getvalue()


def test_the_view_is_that_of_a_run(log):
    screen, out = shown(f"{log}300 rows: 300 ok")
    lines = [line.split() for line in screen.splitlines()]
    assert ["manifest", "300", "rows,", "100", "finished", "20.0", "s"] in lines
    assert ["Ray", "started", "4.0", "s"] in lines
    assert "note: column 'x' is not read" in screen
    assert "160 of 300 rows" in screen
    assert out == "300 rows: 300 ok\n"
    assert shown(log, verbose=True)[1].splitlines() == RAY_LINES


def test_a_job_is_printed_with_its_rows(log, capsys):
    job = remote_job(Info(), read_log(log.split("\n")))
    assert not job.has_ended
    print_job(job, as_json=False)
    assert "rows       160 of 300, 12.0 rows/s, ETA 0:11\n" in capsys.readouterr().out
    print_job(job, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows_done"] == 160
    assert facts["rate_rows_s"] == 12.0
    print_jobs([job, remote_job(Info("b", "PENDING"), read_log([]))], as_json=False)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "status", "rows"]
    assert "one   RUNNING  160 of 300  0       12.0 rows/s  0:11" in first
    assert second.split() == ["b", "PENDING", *"----", "2026-11-30T19:53:32Z", "s3://b/out"]


@pytest.mark.parametrize(
    ("status", "code", "last", "state", "message"),
    [
        ("RUNNING", None, '{"event": "stopping", "grace_s": 9.0}', "STOPPING", None),
        ("SUCCEEDED", 0, "look at it: x", "SUCCEEDED", None),
        ("FAILED", 3, "try its errors again: x", "FINISHED", None),
        ("FAILED", 2, "error: model: found no folder", "FAILED", "error: model: found no folder"),
        ("FAILED", -9, "", "FAILED", "Job is currently running."),
        ("STOPPED", None, "", "STOPPED", "submit the job again to go on: rows that are finished"),
    ],
)
def test_the_state_of_a_job_says_what_became_of_it(status, code, last, state, message):
    job = remote_job(Info("one", status, driver_exit_code=code), read_log([last]))
    assert job.state == job.facts["status"] == state
    assert job.has_ended == (status != "RUNNING")
    assert job.facts.get("message", "").startswith(message or "")
    assert ("message" in job.facts) == (message is not None)


def test_an_unknown_key_of_a_later_version_is_left_out(log):
    later = json.dumps({"event": "progress", **asdict(Progress(9, 4)), "flux": 1})
    assert read_log([later]).progress.rows_done == 4
