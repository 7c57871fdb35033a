"""Measures what bad rows cost a job: `python -m benchmarks.odd_rows`.

Runs the command on 700 drawn pictures, and on the same with 300 bad rows among them: files that
need much memory or time, that are cut off, odd or no media at all, and rows whose prompt, chat or
address cannot be read. Both take turns, so that other load affects both. Prints the seconds of each
run and the ratio of the medians.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mediamill.model.tiny import CAPTION_PROMPT
from mediamill.model.tiny.encode import picture_bytes
from mediamill.model.tiny.scenes import draw_picture
from tests import media
from tests.hostile.picture_bombs import PICTURE_BOMBS
from tests.hostile.video_bombs import VIDEO_BOMBS
from tests.model.media.odd_pictures import GROUPS

GOOD, BAD = 700, 300
Row = dict[str, str | None]


def main() -> None:
    parser = argparse.ArgumentParser(description="What bad rows cost a job.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", help="folder to keep the manifests, media and results in")
    options = parser.parse_args()
    folder = Path(options.folder or tempfile.mkdtemp())
    good = list(_good_rows(folder / "good"))
    bad = list(itertools.islice(itertools.cycle(_bad_rows(folder / "bad")), BAD))
    mixed = good + bad
    order = np.random.default_rng(1).permutation(len(mixed))
    _write(folder / "ordinary.parquet", good)
    _write(folder / "mixed.parquet", [mixed[index] for index in order])
    seconds: dict[str, list[float]] = {"ordinary": [], "mixed": []}
    for _ in range(options.rounds):
        for name, expected in (("ordinary", 0), ("mixed", 3)):
            shutil.rmtree(folder / name, ignore_errors=True)
            start = time.monotonic()
            code, summary = _run(folder / f"{name}.parquet", folder / name)
            seconds[name].append(time.monotonic() - start)
            print(f"{name}: {seconds[name][-1]:.1f} s, exit code {code}, {summary}", flush=True)
            assert code == expected, code
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"ratio of the medians: {medians['mixed'] / medians['ordinary']:.2f}")


def _good_rows(folder: Path) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(GOOD):
        path = folder / f"{number:04}.jpg"
        path.write_bytes(picture_bytes(draw_picture(rng, "two", 640, 480).frames[0], "jpg"))
        yield {"uri": str(path)}


def _bad_rows(folder: Path) -> list[Row]:
    """Rows in the order in which they repeat: first what is wrong with a row, then with a file."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "whole.png"
    picture.write_bytes(picture_bytes(media.draw(48, 64), "png"))
    whole = str(picture)
    rows: list[Row] = [
        {"uri": str(folder / "missing.jpg")},
        {"uri": "x" * 1_000_000},
        {"uri": "ftp://example.com/a.jpg"},
        {"uri": whole, "messages": "[" * 100_000},
        {"uri": whole, "messages": json.dumps([{"role": "user", "content": 5}])},
        {"uri": whole, "messages": "[" + "9" * 10_000 + "]"},
        {"uri": whole, "prompt": "word " * 100_000},
        {"uri": None},
    ]
    odd = {name: item.data for group in GROUPS.values() for name, item in group().items()}
    bombs = {**PICTURE_BOMBS, **VIDEO_BOMBS}
    files = {name: bomb.build() for name, bomb in bombs.items() if not (bomb.slow or bomb.pixels)}
    files |= {f"cut {name}": media.cut(data) for name, data in list(odd.items())[::7]}
    files |= {"text": b"<html>404 not found</html>", "empty": b""}
    files |= dict(list(odd.items())[::5])
    for number, data in enumerate(files.values()):
        path = folder / f"{number:03}.bin"
        path.write_bytes(data)
        rows.append({"uri": str(path)})
    return rows


def _write(path: Path, rows: list[Row]) -> None:
    columns = {
        name: pa.array([row.get(name) for row in rows], pa.string())
        for name in ("uri", "prompt", "messages")
    }
    pq.write_table(pa.table({"id": pa.array(range(len(rows))), **columns}), path)


def _run(manifest: Path, output: Path) -> tuple[int, str]:
    """Runs the job. Returns its exit code, and the counts of its errors."""
    command = [
        *(sys.executable, "-m", "mediamill", "caption", str(manifest), str(output)),
        *("--model", "built-in", "--prompt", CAPTION_PROMPT, "--json"),
        f"fetch.roots=[{manifest.parent}]",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr[-2000:])
    return done.returncode, str(json.loads(done.stdout.splitlines()[-1])["errors"])


if __name__ == "__main__":
    main()
