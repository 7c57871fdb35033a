"""The lines of the live view, at every width."""

from dataclasses import replace

import pytest
from rich.cells import cell_len

from mediamill.jobs.progress.layout import (
    ASCII,
    Field,
    Title,
    compact,
    cut,
    duration,
    fit,
    phase_line,
    phase_result,
    phase_title,
    text_of,
    view,
    width_of,
)
from mediamill.schemas.progress import Engines, ErrorExample, Pool, Progress, progress_of

HALF = Progress(
    rows_total=3000,
    rows_done=1520,
    rows_skipped=20,
    ok=1465,
    errors={"decode_corrupt": 22, "fetch_failed": 8, "media_empty": 3, "poison": 1, "oom": 1},
    examples={
        "decode_corrupt": ErrorExample("2026/IMG_7.jpg", "the JPEG picture is damaged"),
        "fetch_failed": ErrorExample("写真/猫.jpg", "the server answered 503 three times"),
    },
    output_tokens=10_000,
    tokens_s=1240.0,
    seconds=45.0,
    rate_rows_s=66.2,
    eta_s=18.0,
    prepared=1600,
    generated=1530,
    written=1500,
    shares={"fetch": 0.12, "decode": 0.31, "prepare": 0.04, "engine": 0.98, "write": 0.03},
    binds="generate",
    bound_by="engine",
    engine_rows_s=70.1,
    engines=Engines(32, 18, 0.41),
    workers=Pool(3, 0, 3, 1),
    replicas=Pool(1, 1, 2),
)
BEGUN = Progress(rows_total=240, rows_done=0, seconds=4.0, prepared=7, phase="first_rows")
SPLIT = replace(HALF, generates=False, bound_by="decode", shares={"decode": 0.7})
TITLE = Title("caption", "captions/", "windows")


def text(progress, width=140, height=40):
    return "\n".join(text_of(line) for line in view(progress, TITLE, width, height))


def test_all_of_it_where_there_is_room():
    assert text(HALF).splitlines() == [
        "caption  → captions/  step: windows  0:45",
        "━━━━━━━━━━━━━━━━━━━━────────────────────   50 %  1,520 of 3,000 rows",
        "66.2 rows/s  ETA 0:18  1,240 tokens/s  engines at work: 70.1 rows/s",
        "this run: 1,465 ok  35 errors  earlier runs: 20 rows",
        "busy:  fetch 12 %  decode 31 %  prepare 4 %  engine 98 %  write 3 %",
        "the engines limit the rate: rows wait for them",
        "engines: 32 rows run  18 wait  cache 41 %  replicas 1 of 2  workers 3  1 replaced",
        "decode_corrupt 22  2026/IMG_7.jpg: the JPEG picture is damaged",
        "fetch_failed 8  写真/猫.jpg: the server answered 503 three times",
        "media_empty 3",
        "oom 1",
        "and 1 more code",
    ]


@pytest.mark.parametrize("progress", [HALF, BEGUN, SPLIT, Progress(0, 0), Progress(5, 9)])
@pytest.mark.parametrize("width", [1, 7, 19, 40, 60, 80, 140])
def test_fields_are_shown_whole_or_not_at_all(progress, width):
    wide = set(text(progress, 10_000).split())
    for line in view(progress, TITLE, width, 40):
        assert width_of(line) <= width
        shown = text_of(line)
        assert cell_len(shown) == width_of(line)
        bar = set("━─")
        assert {word for word in shown.split() if not set(word) <= bar} <= wide | {"…", "0:45"} | {
            "bottleneck:",
            "engine",
            "decode",
        }


@pytest.mark.parametrize("height", [1, 3, 12])
def test_never_more_than_one_screen(height):
    assert len(view(HALF, TITLE, 80, height)) == height


def test_a_step_without_engines_has_no_field_of_them():
    shown = text(SPLIT)
    assert "tokens" not in shown
    assert "engine" not in shown
    assert "replicas" not in shown
    assert "decoding limits the rate" in shown


def test_a_limited_run_counts_to_its_own_end():
    shown = text(replace(HALF, rows_later=1400, rows_done=1600))
    assert "100 %  1,600 of 1,600 rows" in shown
    assert "left for later: 1,400 rows" in shown


def test_99_of_100_percent_is_not_rounded_up():
    assert " 99 %" in text(replace(HALF, rows_total=1000, rows_done=999))


def test_a_terminal_without_utf8_gets_ascii_bars():
    lines = view(HALF, Title("caption", "out"), 80, 2, ASCII)
    assert "".join(map(text_of, lines)).isascii()


def test_the_least_important_field_goes_first():
    fields = [Field("aaaa", 1), Field("bbbb", 0), Field("cccc", 2), Field("", 0)]
    assert text_of(fit(fields, 16)) == "aaaa  bbbb  cccc"
    assert text_of(fit(fields, 15)) == "aaaa  bbbb"
    assert text_of(fit(fields, 9)) == "bbbb"
    assert fit(fields, 3) == []


@pytest.mark.parametrize(
    ("width", "expected"),
    [(40, "one two\nthree"), (11, "one two …"), (9, "one two …"), (8, "one …"), (2, "")],
)
def test_a_sentence_is_cut_between_words(width, expected):
    assert cut("one two\nthree", width) == expected.replace("\n", " ")


def test_the_line_that_stays():
    assert compact(HALF) == (
        "1,520 of 3,000 rows  35 errors  66.2 rows/s  ETA 0:18  0:45  bottleneck: engine"
    )
    assert compact(HALF, 32) == "1,520 of 3,000 rows  35 errors"


@pytest.mark.parametrize(
    ("progress", "title"),
    [
        (Progress(5, 0, phase="ray"), "starting Ray"),
        (Progress(5, 0, phase="processes"), "starting processes"),
        (
            Progress(5, 0, phase="processes", workers=Pool(1, 2, 3), replicas=Pool(0, 1, 1)),
            "starting processes (1 of 4)",
        ),
        (Progress(5, 0, phase="model", model_bytes=4_300_000), "loading the model (4.3 MB)"),
        (BEGUN, "first rows (7 prepared)"),
        (Progress(5, 0, phase="ray", waits_for="no GPU"), "waiting: no GPU"),
    ],
)
def test_what_it_does_before_the_first_rows(progress, title):
    assert phase_title(progress) == title


def test_what_a_phase_has_found_out():
    name, facts = phase_result("processes", replace(HALF, workers=Pool(1, 0, 1)))
    assert text_of(phase_line(name, facts, 4.04, 80)) == "processes   1 worker, 2 replicas  4.0 s"
    assert text_of(phase_line(name, facts, 4.04, 32)) == "processes   1 worker, 2 replicas"
    assert phase_result("model", replace(HALF, model_bytes=15_231_233_024)) == ("model", "15.2 GB")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00"), (59.7, "1:00"), (3725, "1:02:05"), (90_061, "1 d 1:01:01"), (-3, "0:00")],
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected


def test_a_progress_survives_its_way_through_json():
    import json
    from dataclasses import asdict

    values = json.loads(json.dumps(asdict(HALF)))
    assert progress_of({**values, "a key of a later version": 1}) == HALF
