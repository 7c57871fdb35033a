"""Counts of an output compared with the truth, and rows that are chosen from it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.inspect.findings import repeated_share
from mediamill.pipeline.inspect.histogram import Histogram
from mediamill.pipeline.inspect.output import Output
from mediamill.pipeline.inspect.repeats import RepeatedTexts
from mediamill.pipeline.inspect.samples import Least, Strata
from mediamill.pipeline.inspect.statistics import Statistics, count


def drawn_rows(total: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    rows = []
    for number in range(total):
        failed = rng.random() < 0.1
        text = " ".join(str(word) for word in rng.integers(0, 50, rng.integers(1, 60)))
        if number % 10 == 3:
            text = "the same text"
        rows.append(
            {
                "id": number,
                "day": f"d{number % 3}",
                "text": None if failed else text,
                "status": "error" if failed else "ok",
                "error_code": ["fetch_timeout", "poison"][number % 2] if failed else None,
                "finish_reason": None if failed else ["stop", "length"][number % 2],
                "output_tokens": None if failed else int(rng.integers(1, 300)),
                "mean_logprob": None if failed else float(-rng.random()),
                "height": None if failed else 84,
                "width": None if failed else 84,
            }
        )
    return rows


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Output]:
    folder, rows = tmp_path_factory.mktemp("output"), drawn_rows(3000)
    table = pa.Table.from_pylist(rows)
    day = ds.partitioning(pa.schema([("day", pa.string())]), flavor="hive")
    ds.write_dataset(table, folder, format="parquet", partitioning=day, max_rows_per_group=100,
                     max_rows_per_file=400, min_rows_per_group=100)  # fmt: skip
    return rows, Output(str(folder))


@pytest.fixture(scope="module")
def counted(drawn: tuple[list[dict[str, Any]], Output]) -> Statistics:
    return count(drawn[1])


def test_counts_are_the_truth(
    drawn: tuple[list[dict[str, Any]], Output], counted: Statistics
) -> None:
    rows = drawn[0]
    ok = [row for row in rows if row["status"] == "ok"]
    assert (counted.rows, counted.ok, counted.examined) == (3000, len(ok), len(ok))
    assert counted.errors == Counter(row["error_code"] for row in rows if row["error_code"])
    assert counted.tokens["output_tokens"] == sum(row["output_tokens"] for row in ok)
    groups = {name: (group.rows, group.ok) for name, group in counted.groups.items()}
    days = Counter(row["day"] for row in rows)
    assert groups == {day: (days[day], sum(r["day"] == day for r in ok)) for day in days}
    assert counted.findings["cut_off"] == sum(row["finish_reason"] == "length" for row in ok)
    texts = Counter(row["text"] for row in ok)
    same = sum(number for number in texts.values() if number > 1)
    assert counted.repeats.share == pytest.approx(same / len(ok))
    assert counted.repeats.most_common(1)[0][0] == "the same text"
    tokens = np.array([row["output_tokens"] for row in ok])
    histogram = counted.histograms["output_tokens"]
    assert histogram.mean == pytest.approx(tokens.mean())
    assert histogram.quantile(0.5) == np.sort(tokens)[-(-len(tokens) // 2) - 1]
    assert sum(bar.rows for bar in histogram.bars()) == len(ok)


def test_chosen_rows_are_what_they_are_chosen_for(
    drawn: tuple[list[dict[str, Any]], Output], counted: Statistics
) -> None:
    rows, output = drawn
    sample = counted.sample
    wanted = [position for positions in sample.values() for position in positions]
    values = output.rows(wanted, ["id", "text", "mean_logprob", "error_code"])
    assert len(values) == len(set(wanted))
    ok = [row for row in rows if row["status"] == "ok"]
    least = sorted(row["mean_logprob"] for row in ok)[:12]
    assert [values[p]["mean_logprob"] for p in sample["unsure"]] == least
    longest = sorted((len(row["text"]) for row in ok), reverse=True)[:12]
    assert [len(values[p]["text"]) for p in sample["long"]] == longest
    assert {values[p]["error_code"] for p in sample["error:poison"]} == {"poison"}
    for position, row in values.items():
        assert row["day"] == rows[row["id"]]["day"], position
    chosen = counted.strata.choose(30)
    days = Counter(row["day"] for row in output.rows(chosen, ["id"]).values())
    assert set(days.values()) == {10}


def test_columns_that_some_files_lack(tmp_path: Path) -> None:
    one = {"id": ["a"], "status": ["ok"], "text": ["x"], "output_tokens": [3]}
    pq.write_table(pa.table(one), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["b"], "status": ["error"]}), tmp_path / "b.parquet")
    counted = count(Output(str(tmp_path)))
    assert (counted.rows, counted.ok, counted.tokens["output_tokens"]) == (2, 1, 3)


def test_texts_that_are_not_utf8(tmp_path: Path) -> None:
    bad = pa.array([b"\xff\xfe bad", b"good"]).cast(pa.binary()).view(pa.string())
    table = pa.table({"id": ["a", "b"], "status": ["ok", "ok"], "text": bad})
    pq.write_table(table, tmp_path / "a.parquet")
    counted = count(Output(str(tmp_path)))
    assert counted.ok == 2


def test_repeated_texts_of_a_long_stream_are_estimated() -> None:
    repeats = RepeatedTexts()
    for start in range(0, 400_000, 4000):
        texts = [(f"text {number}", 1) for number in range(start, start + 3600)]
        repeats.add([*texts, ("again", 400)])
    assert not repeats.is_exact
    assert repeats.share == pytest.approx(0.1, abs=0.005)
    assert repeats.most_common(1) == [("again", 40_000)]


def test_loops_are_told_from_prose() -> None:
    prose = "A man walks a small dog along the beach while two children build a castle of sand " * 2
    assert repeated_share(prose) < 0.5
    assert repeated_share("a man and " * 40) > 0.9
    assert repeated_share("很" * 200) > 0.9
    assert repeated_share("no no no no") == 0.0


def test_samples_and_histograms_at_the_edges() -> None:
    strata = Strata()
    assert strata.choose(5) == []
    numbers = np.arange(10)
    strata.add(np.zeros(10, np.int64), np.linspace(1, 0, 10), 0, numbers)
    assert strata.choose(3) == [(0, 9), (0, 8), (0, 7)]
    least = Least(2)
    least.add(np.array([np.nan, 3.0, -1.0, np.inf]), 1, np.arange(4))
    least.add(np.array([2.0]), 2, np.arange(1))
    assert least.positions == [(1, 2), (2, 0)]
    histogram = Histogram()
    assert histogram.bars() == ()
    histogram.add(np.array([np.nan, 5.0, 1e9]))
    assert histogram.count == 2
    assert sum(bar.rows for bar in histogram.bars()) == 2
