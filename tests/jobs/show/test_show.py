"""The command show: one row with everything, found by its id or by a condition."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mediamill.jobs.cli import main
from mediamill.jobs.show.show import run_show
from mediamill.jobs.show.terminal_pictures import draw, protocol_of
from tests.jobs.report.results import HOSTILE, clip_file, failed, picture_file, row, write_result

ODD = "a 'b' \"c\"/ü\n--x"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("output")
    rows = [
        row(id="one", uri=picture_file(folder), kind="a", text="a red star", prompt=None),
        row(id="clip", uri=clip_file(folder), kind="b", text="a clip"),
        row(id=ODD, uri="x.jpg", kind="b", text=HOSTILE + "\x1b[2J"),
        row(id="-5", uri="x.jpg", kind="b", text="minus five"),
        row(id="two", uri="x.jpg", kind="a", text="first"),
        row(id="two", uri="x.jpg", kind="b", text="second"),
        failed(id="bad", uri="https://u:secret@h/x.jpg", kind="b", error_code="fetch_timeout",
               error_message="no answer"),
    ]  # fmt: skip
    return write_result(folder / "result", rows)


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["show", *arguments]) == 0
    return capsys.readouterr().out


def test_one_row(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, output, "clip", "--no-pictures")
    for words in ("a clip", "4 frames at 0:00.0", "log-probability -0.25", "kind           b",
                  "run-1", "7 written", f"next: mediamill show {output} clip --open"):  # fmt: skip
        assert words in text


def test_ids_of_every_kind(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "minus five" in show(capsys, output, "--", "-5")
    text = show(capsys, output, ODD, "--no-pictures")
    assert "alert(1)" in text
    assert "\x1b" not in text
    text = show(capsys, output, "two", "--no-pictures")
    assert "first" in text
    assert "second" in text
    assert "2 rows have this id" in text
    text = show(capsys, output, "bad", "--no-pictures")
    assert "error: fetch_timeout" in text
    assert "secret" not in text


def test_an_unknown_id_names_the_nearest(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", output, "clipp"]) == 2
    assert "found no row with the id 'clipp'; did you mean 'clip'?" in capsys.readouterr().err


def test_conditions_and_limits(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, output, "--where", "status == 'error' and kind == 'b'")
    assert re.findall(r"^id +(.*)$", text, re.MULTILINE) == ["bad"]
    text = show(capsys, output, "--where", "kind == 'a'", "--limit", "1", "--no-pictures")
    assert len(re.findall(r"^id ", text, re.MULTILINE)) == 1
    assert "more rows match" in text
    assert main(["show", output, "--where", "text == 'nothing'"]) == 1
    assert main(["show", output, "--where", "nothing == 1"]) == 2
    assert main(["show", output]) == 2
    assert main(["show", output, "one", "--where", "kind == 'a'"]) == 2


def test_json(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(show(capsys, output, "clip", "--json"))
    assert values["text"] == "a clip"
    assert values["kind"] == "b"
    assert values["receipt"][0]["type"] == "video"


def test_whole_numbers_as_ids_and_the_windows_of_a_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"status": ["ok", "ok"], "text": ["first", "second"]}
    pq.write_table(pa.table({"id": [7, -8], **common}), tmp_path / "a.parquet")
    assert "second" in show(capsys, str(tmp_path), "--", "-8")
    assert main(["show", str(tmp_path), "9"]) == 2
    assert "ids look like '7'" in capsys.readouterr().err
    assert main(["show", str(tmp_path), "x" * 30]) == 2
    windows = {"id": ["v#0", "v#1"], "video_id": ["v", "v"], "start_s": [0.0, 1.0]}
    (tmp_path / "w").mkdir()
    pq.write_table(pa.table({**windows, **common}), tmp_path / "w" / "a.parquet")
    text = show(capsys, str(tmp_path / "w"), "v")
    assert "first" in text
    assert "second" in text


def test_pictures_on_a_terminal(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    colours = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    assert run_show([output, "one"], colours, is_terminal=True) == 0
    assert "\x1b[38;2;220;40;40;48;2;220;40;40m▀" in capsys.readouterr().out
    assert run_show([output, "one", "--no-pictures"], colours, is_terminal=True) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_page_of_the_row(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = tmp_path / "row.html"
    assert main(["show", output, ODD, "--open", "--page", str(page)]) == 0
    assert main(["show", output, "clip", "--open", "--page", str(page)]) == 0
    assert opened == [page.as_uri()] * 2
    source = page.read_text(encoding="utf-8")
    assert source.count("data:image/jpeg;base64,") == 4
    assert "default-src 'none'" in source


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "1"}, "blocks256"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "none"),
        ({"TERM": "dumb"}, "none"),
        ({}, "none"),
    ],
)
def test_what_a_terminal_can_show(environment: dict[str, str], protocol: str) -> None:
    assert protocol_of(environment, is_terminal=True) == protocol
    assert protocol_of(environment, is_terminal=False) == "none"


def test_drawings_fit_the_terminal() -> None:
    frames = [np.full((90, 160, 3), shade, np.uint8) for shade in (0, 128, 255)]
    blocks = draw(frames, "blocks", 80)
    lines = [re.sub(r"\x1b\[[^m]*m", "", line) for line in blocks.splitlines()]
    assert len(lines) == 10
    assert {len(line) for line in lines} == {2 * 36 + 1}  # two of the three fit
    assert draw(frames, "none", 80) == ""
    sixel = draw(frames, "sixel", 80)
    assert sixel.startswith("\x1bPq")
    assert sixel.rstrip().endswith("\x1b\\")
    kitty = draw(frames, "kitty", 80)
    messages = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty)
    assert [part.endswith("m=0") for part, _ in messages] == [False] * (len(messages) - 1) + [True]
    import base64
    import io

    data = base64.b64decode("".join(text for _, text in messages))
    assert Image.open(io.BytesIO(data)).height == 160
