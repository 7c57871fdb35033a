"""Measures annotate jobs on this machine: `python -m benchmarks.annotate clips|long [FOLDER]`.

clips: 200 short clips and a simulated engine; how busy the engine is, and the bottleneck.
long: a video of three hours; seconds, and the peak memory of each process.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.annotate.annotate import (
    WINDOW_STAGES,
    AnnotationSummary,
    WindowStage,
    annotate,
    check_annotation,
)
from mediamill.pipeline.run import Stages
from mediamill.schemas.job import JobConfig, load_job
from mediamill.schemas.manifest import ManifestSchema
from tests import processes
from tests.films import film, repeated
from tests.soak.simulated import Answered

CLIPS, CLIP_S = 200, (2, 3, 4)
ENGINE_ROWS_S = 10.0  # of the simulated engine: two cores prepare about twice as many clips
HOURS, LOOP_S = 3, 60
_LOG = "_engine.jsonl"  # in the job's folder: start and end of the engine's calls


class Paced:
    """An engine that answers ENGINE_ROWS_S rows a second, one call after the other."""

    def __init__(
        self, job: JobConfig, schema: ManifestSchema, count: Callable[[int], None], **_: Any
    ) -> None:
        self._answered = Answered(schema, count)
        self._log = Path(job.output).parent / _LOG
        self._lock = threading.Lock()

    def __call__(self, table: pa.Table) -> pa.Table:
        if table.num_rows:
            with self._lock, self._log.open("a") as log:
                start = time.time()
                time.sleep(table.num_rows / ENGINE_ROWS_S)
                log.write(json.dumps([start, time.time()]) + "\n")
        return self._answered(table)


PACED = Stages(prepare=WindowStage, generate=Paced)


def busy_share(output: Path) -> float:
    """Returns the engine's busy share of the time from its first row to its last."""
    spans = sorted(json.loads(line) for line in (output / _LOG).read_text().splitlines())
    return sum(end - start for start, end in spans) / (spans[-1][1] - spans[0][0])


def job_of(manifest: Path, output: Path, **changes: object) -> JobConfig:
    """Returns an annotate job with the built-in model.

    changes: job keys, with two underscores for the dot.
    """
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    return load_job(
        None,
        {
            "job": "annotate",
            "manifest": str(manifest),
            "output": str(output),
            "model": str(CHECKPOINT),
            "prompt": CAPTION_PROMPT,
            "generation.max_new_tokens": 12,
            **keys,
        },
    )


def clips(folder: Path, count: int = CLIPS) -> tuple[AnnotationSummary, float]:
    """Annotates short clips with the paced engine. Returns the result and its busy share."""
    rows = []
    drawn = [film(number, [CLIP_S[number % len(CLIP_S)]])[0] for number in range(24)]
    for number in range(count):
        path = folder / f"clip-{number:03}.mp4"
        path.write_bytes(drawn[number % len(drawn)])
        rows.append({"id": path.stem, "uri": str(path)})
    pq.write_table(pa.Table.from_pylist(rows), folder / "clips.parquet")
    job = job_of(folder / "clips.parquet", folder / "timelines", resources__batch_rows=32)
    made = annotate(check_annotation(job), stages=PACED)
    return made, busy_share(folder / "timelines")


def long(folder: Path) -> AnnotationSummary:
    """Annotates FOLDER/long.mp4 in windows of 10 s, with an engine that takes no time."""
    rows = [{"id": "v", "uri": str(folder / "long.mp4")}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "long.parquet")
    job = job_of(folder / "long.parquet", folder / "timeline", annotate__videos=True)
    return annotate(check_annotation(job), stages=Stages(WINDOW_STAGES.prepare, Answered))


def long_video(path: Path, hours: float = HOURS) -> list[tuple[float, float, str]]:
    """Writes a video of that many hours. Returns (start, end, caption) of its events, 3 s each."""
    data, events = film(7, [3] * (LOOP_S // 3))
    times = round(hours * 3600 / LOOP_S)
    repeated(data, times, path)
    return [
        (loop * LOOP_S + one.start_s, loop * LOOP_S + one.end_s, one.caption)
        for loop in range(times)
        for one in events
    ]


@dataclass
class Peaks:
    """The peak memory of one process in bytes, by its kind."""

    bytes: dict[str, int]


@contextmanager
def watched(every_s: float = 0.5) -> Iterator[Peaks]:
    """Samples the memory of the workers and of their decoding processes while the block runs."""
    peaks, over = Peaks(defaultdict(int)), threading.Event()

    def look() -> None:
        while not over.wait(every_s):
            for kind, size in _sizes().items():
                peaks.bytes[kind] = max(peaks.bytes[kind], size)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


def _sizes() -> dict[str, int]:
    """Returns the memory of the largest worker with its children, and of the largest child.

    Memory that forks share counts once, with their parent.
    """
    found: dict[str, int] = {"worker": 0, "child": 0}
    for pid in processes.descendants(os.getpid()):
        if "_FetchAndPrepare" not in processes.title(pid):
            continue
        children = [_private(one) for one in processes.descendants(pid)]
        found["worker"] = max(found["worker"], _private(pid) + sum(children))
        found["child"] = max([found["child"], *children])
    return found


def _private(pid: int) -> int:
    """Returns the bytes that only this process uses, plus its part of shared ones."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(one.split()[1]) * 1024 for one in lines if one.startswith("Pss:")), 0)


def main(what: str, folder: Path) -> None:
    """Prints the figures of one measurement."""
    started = time.monotonic()
    if what == "clips":
        made, busy = clips(folder)
        print(f"{made.windows.rows} windows of {CLIPS} clips in {made.windows.seconds:.1f} s")
        print(f"engine of {ENGINE_ROWS_S:g} rows/s: busy {busy:.1%} from its first row to its last")
        print(f"bottleneck: {made.windows.binds}")
        return
    path = folder / "long.mp4"
    if not path.exists():
        long_video(path)
    print(f"{path.stat().st_size / 2**20:.0f} MiB, made in {time.monotonic() - started:.0f} s")
    with watched() as peaks:
        made = long(folder)
    print(f"split in {made.split.seconds:.1f} s")
    print(f"{made.windows.rows} windows of {HOURS} h in {made.windows.seconds:.1f} s")
    print({kind: f"{size / 2**20:.0f} MiB" for kind, size in peaks.bytes.items()})


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(sys.argv[1], Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(sys.argv[1], Path(temporary))
