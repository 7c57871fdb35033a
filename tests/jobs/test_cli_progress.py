"""What a terminal and a log see of a running job."""

import io
import json
from dataclasses import replace

import pytest

from mediamill.jobs.progress import JsonReporter, TerminalReporter, progress_line, reporter_for
from mediamill.schemas.result import Progress

HALF = Progress(
    rows_total=240,
    rows_done=120,
    rows_skipped=20,
    ok=95,
    errors={"decode_corrupt": 3, "media_empty": 2},
    output_tokens=1000,
    seconds=10.0,
    rate_rows_s=10.0,
    eta_s=12.0,
    prepared=110,
    generated=105,
    written=100,
)
BEGUN = Progress(rows_total=240, rows_done=0, seconds=4.0, prepared=7, generated=2)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_line_with_room():
    assert progress_line(HALF, 200) == (
        "[############------------] 120/240 rows  50%  95 ok, 5 errors  10.0 rows/s  100 tokens/s"
        "  ETA 0:12"
    )


def test_line_before_the_first_row_shows_that_stages_move():
    assert progress_line(BEGUN, 200).endswith(
        "] 0/240 rows   0%  0 ok, 0 errors  7 prepared, 2 generated  0:04"
    )


@pytest.mark.parametrize("columns", [1, 7, 40, 80, 199])
@pytest.mark.parametrize("progress", [HALF, BEGUN])
def test_line_is_never_too_long(progress, columns):
    assert len(progress_line(progress, columns)) <= columns


@pytest.mark.parametrize(
    ("progress", "ending"),
    [
        (Progress(rows_total=0, rows_done=0), "0/0 rows 100%  0 ok, 0 errors"),
        (replace(HALF, eta_s=None), "100 tokens/s"),
        (replace(HALF, eta_s=3725.0), "ETA 1:02:05"),
        (replace(HALF, rows_done=240, rows_skipped=240, written=0), "100%  95 ok, 5 errors"),
    ],
)
def test_corners(progress, ending):
    assert progress_line(progress, 200).endswith(ending)


def test_99_of_100_percent_is_not_rounded_up():
    assert " 99%" in progress_line(replace(HALF, rows_total=1000, rows_done=999), 200)


def test_terminal_rewrites_one_line_and_ends_it():
    stream, clock = Terminal(), Clock()
    report = TerminalReporter(stream, every_s=1.0, columns=80, clock=clock)
    report(BEGUN)
    clock.now = 0.5
    report(HALF)  # too soon: held back
    clock.now = 1.5
    report(replace(HALF, rows_done=130))
    clock.now = 1.6
    report(replace(HALF, rows_done=240))  # the last one is never lost
    report.close()
    shown = stream.getvalue()
    assert shown.endswith("\x1b[K\n")
    frames = shown.removesuffix("\n").split("\r")[1:]
    assert [frame.split("/240")[0].split()[-1] for frame in frames] == ["0", "130", "240"]
    assert all(len(frame.removesuffix("\x1b[K")) < 80 for frame in frames)
    assert "\n" not in shown[:-1]


def test_log_gets_json_lines_every_so_often():
    stream, clock = io.StringIO(), Clock()
    report = JsonReporter(stream, every_s=5.0, clock=clock)
    for second in range(12):
        clock.now = float(second)
        report(replace(HALF, rows_done=100 + second))
    report.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["rows_done"] for line in lines] == [100, 105, 110, 111]
    assert lines[0]["event"] == "progress"
    assert lines[0]["errors"] == {"decode_corrupt": 3, "media_empty": 2}
    assert lines[0]["eta_s"] == 12.0


@pytest.mark.parametrize("make", [JsonReporter, TerminalReporter])
def test_nothing_to_report_prints_nothing(make):
    stream = io.StringIO()
    make(stream).close()
    assert stream.getvalue() == ""


def test_the_stream_decides():
    assert isinstance(reporter_for(Terminal()), TerminalReporter)
    assert isinstance(reporter_for(io.StringIO()), JsonReporter)
