"""Measures the cost of a second question and of a duplicate.

Usage: `python -m benchmarks.questions [--model DIR]`. Measures the CPU seconds of the stages and
their decoding processes for the same pictures: one question, another one, both in one job, and
every picture twice with duplicates answered once. These take turns, each with new pictures, since
engines cache. Prints the medians, and the medians of the ratios within a turn. Ray and the output
files are left out.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import getpid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.model.tiny.encode import picture_file
from mediamill.pipeline.records import read_schema
from mediamill.pipeline.stages.fetch import Fetch, FetchRules
from mediamill.pipeline.stages.generate import EngineSize, Generate
from mediamill.pipeline.stages.prepare import Prepare
from mediamill.pipeline.tasks.answer_cache import AnswerCache
from mediamill.schemas import columns as c
from mediamill.schemas.job import JobConfig, load_job
from mediamill.schemas.manifest import ManifestSchema, check_manifest_schema
from mediamill.schemas.task import task_of
from tests.processes import descendants

SECOND = "How many shapes are there?"
ROUNDS = 15


def rows_of(folder: Path, pictures: int, side: int = 0) -> list[dict[str, str]]:
    """Returns drawn pictures and manifest rows for them.

    side: their width and height in pixels; 0 = as drawn, 84 to 112.
    """
    rng = np.random.default_rng(7)
    rows = []
    for number in range(pictures):
        path = folder / f"{number}.jpg"
        data = picture_file(rng, "two", "jpg")[1]
        if side:
            with Image.open(io.BytesIO(data)) as drawn:
                drawn.resize((side, side)).save(path, quality=90)
        else:
            path.write_bytes(data)
        rows.append({"id": f"{number}", "uri": str(path)})
    return rows


class Way:
    """The stages of one job, which can be called repeatedly."""

    def __init__(self, rows: list[dict[str, str]], folder: Path, model: str, **keys: Any) -> None:
        source = pa.Table.from_pylist(rows)
        self.manifest = check_manifest_schema(source.schema, "manifest")
        self.table = read_table(self.manifest, source)
        self.job = job = job_of(folder, model, keys)
        self.task = task = task_of(job)
        self.fetch = Fetch(self.manifest, FetchRules.of(job, "/"))
        self.prepare = Prepare(self.manifest, job, task, Path(model), lambda _: None)
        self.answers = AnswerCache()
        self.generate = Generate(
            self.manifest,
            job,
            Path(model),
            lambda _: None,
            EngineSize(32, 1, on_gpu=False),
            task=task,
            registry=self.answers,
        )

    def answers_of(self, table: pa.Table | None = None) -> list[dict[str, Any]]:
        """Returns the rows, or those of a part of the manifest, as they would be written."""
        read = self.table if table is None else table
        rows: list[dict[str, Any]] = self.generate(self.prepare(self.fetch(read))).to_pylist()
        return rows

    def timed(self, first: int, count: int) -> float:
        """Returns the CPU seconds of this process and its children for some of the rows."""
        before = cpu_s()
        self.answers_of(self.table.slice(first, count))
        return cpu_s() - before


def job_of(folder: Path, model: str, keys: dict[str, Any]) -> JobConfig:
    values = {
        "job": "caption",
        "manifest": "m",
        "output": "o",
        "model": model,
        "fetch.roots": [str(folder)],
        "generation.max_new_tokens": 32,
    }
    return load_job(None, values | keys)


def read_table(manifest: ManifestSchema, source: pa.Table) -> pa.Table:
    schema = read_schema(manifest)
    columns = {field.name: pa.nulls(source.num_rows, field.type) for field in schema}
    columns |= {name: source[name] for name in source.column_names}
    ordinals = [{"file": 0, "index": index} for index in range(source.num_rows)]
    return pa.table(columns | {c.ROW: pa.array(ordinals)}).cast(schema)


def cpu_s() -> float:
    """Returns the CPU seconds of this process and of its live descendants."""
    total = time.process_time()
    for number in descendants(getpid()):
        try:
            total += int(Path(f"/proc/{number}/schedstat").read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


@contextmanager
def ways(model: str, pictures: int, side: int) -> Iterator[dict[str, Way]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = rows_of(folder, pictures, side)
        twice = [one for row in rows for one in (row, {**row, "id": f"{row['id']}-again"})]
        both = {"caption": CAPTION_PROMPT, "count": SECOND}
        yield {
            "one question": Way(rows, folder, model, prompt=CAPTION_PROMPT),
            "the other": Way(rows, folder, model, prompt=SECOND),
            "both": Way(rows, folder, model, prompts=both),
            "every row twice": Way(twice, folder, model, prompt=CAPTION_PROMPT, dedupe=True),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(CHECKPOINT))
    parser.add_argument("--pictures", type=int, default=64, help="in each turn")
    parser.add_argument("--side", type=int, default=0, help="pixels; 0 = as they are drawn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with ways(options.model, options.pictures * (ROUNDS + 1), options.side) as found:
        taken: dict[str, list[float]] = {name: [] for name in found}
        for turn in range(ROUNDS + 1):
            for name, way in found.items():
                count = way.table.num_rows // (ROUNDS + 1)
                seconds = way.timed(turn * count, count)
                if turn:  # the first one warms up
                    taken[name].append(seconds)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, seconds in medians.items():
        print(f"{name:<16} {seconds:8.3f} CPU-s for {options.pictures} pictures")
    turns = list(zip(*taken.values(), strict=True))
    second = statistics.median((both - one) / other for one, other, both, _ in turns)
    copy = statistics.median((twice - one) / one for one, *_, twice in turns)
    print(f"a second question costs {second:.0%} of a job of its own")
    print(f"a copy costs {copy:.0%} of a row")


if __name__ == "__main__":
    main()
