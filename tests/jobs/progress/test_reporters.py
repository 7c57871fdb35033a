"""What a log, a terminal and a terminal that cannot be rewritten see of a job."""

import io
import json
import time
from dataclasses import replace

import pytest

from mediamill.jobs.interactive import reporter_for
from mediamill.jobs.progress.layout import Title
from mediamill.jobs.progress.reporter import MANIFEST, JsonReporter
from mediamill.jobs.progress.terminal import PlainReporter, Screen, TerminalReporter
from mediamill.schemas.progress import Progress
from tests.jobs.progress.test_layout import HALF


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def phases(report, rows=3):
    report.begin(MANIFEST)
    report.end({"rows": 3000, "finished": 20})
    report.notes(["one file is left out"])
    for phase in ("ray", "processes", "model", "first_rows"):
        report(replace(HALF, phase=phase, model_bytes=4_300_000))
    for number in range(rows):
        report(replace(HALF, rows_done=1520 + number))


def events(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_log_has_phases_and_then_json_lines_every_so_often():
    stream, clock = io.StringIO(), Clock()
    report = JsonReporter(stream, every_s=5.0, clock=clock)
    phases(report, 0)
    for second in range(12):
        clock.now = float(second)
        report(replace(HALF, rows_done=100 + second))
    report.close()
    lines = events(stream)
    assert [line["phase"] for line in lines if line["event"] == "phase"] == [
        "manifest",
        "ray",
        "processes",
        "model",
        "first_rows",
        "rows",
    ]
    assert {"event": "note", "text": "one file is left out"} in lines
    ended = next(line for line in lines if line["event"] == "phase_ended")
    assert (ended["rows"], ended["finished"]) == (3000, 20)
    progress = [line for line in lines if line["event"] == "progress"]
    assert [line["rows_done"] for line in progress] == [100, 105, 110, 111]
    assert progress[0]["errors"]["decode_corrupt"] == 22
    assert progress[0]["examples"]["decode_corrupt"]["id"] == "2026/IMG_7.jpg"


def test_each_step_of_a_job_has_phases_and_a_last_progress():
    stream = io.StringIO()
    report = JsonReporter(stream, 1000.0)
    report.step("split")
    report(Progress(2, 1))
    report(Progress(2, 2))  # held back until something else comes
    report.step("windows")
    report(Progress(9, 3))
    report.close()
    found = [
        (line["step"], line["rows_done"]) for line in events(stream) if line["event"] == "progress"
    ]
    assert found == [("split", 1), ("split", 2), ("windows", 3)]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_keeps_the_phases_and_one_line(columns):
    stream = Terminal()
    report = TerminalReporter(stream, Title("caption"), Screen(stream, lambda: (columns, 24)))
    try:
        phases(report)
        deadline = time.monotonic() + 20
        while "66.2 rows/s" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
        report.stopping(60.0)
        while "stopping" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        report.end_view()
    shown = stream.getvalue()
    for words in ("manifest", "3,000 rows, 20 finished", "Ray", "4.3 MB", "note: one file is left"):
        assert words in shown
    assert "1,522 of 3,000 rows" in shown.rstrip("\n").rpartition("\n")[2]


def test_a_terminal_that_cannot_be_rewritten_gets_lines_without_escapes(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    report = reporter_for(stream, Title("caption"))
    assert isinstance(report, PlainReporter)
    phases(report)
    report.stopping(60.0)
    report.close()
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert shown.splitlines()[0].startswith("reading the manifest")
    assert "loading the model" in shown
    assert "1,520 of 3,000 rows" in shown


@pytest.mark.parametrize("make", [JsonReporter, PlainReporter])
def test_nothing_to_report_prints_nothing(make):
    stream = io.StringIO()
    make(stream).close()
    assert stream.getvalue() == ""


def test_a_stream_that_is_no_terminal_is_a_log():
    assert isinstance(reporter_for(io.StringIO(), Title("caption")), JsonReporter)
