"""What the check of a large manifest leaves in the process that then drives the job for days."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from tests.pipeline.world import write_manifest

ROOT = Path(__file__).parents[2]
FILES, ROWS = 8, 65_536
MOST_MB = 40  # with 65,536 ids at once, and all kept that was freed, it was 60 to 90
CHILD = """
import os, sys
from mediamill.pipeline.plan import check
from tests.pipeline.world import make_job
from tests.processes import memory

small, large, output = sys.argv[1:]
check(make_job(small, output))  # what is imported and set up once
before = memory(os.getpid(), "RssAnon")
plan = check(make_job(large, output))
print(plan.manifest.rows, memory(os.getpid(), "RssAnon") - before)
"""


def test_a_large_manifest_leaves_little_behind(tmp_path):
    for number in range(FILES):
        write_manifest(tmp_path / "large" / f"{number}.parquet", table(number * ROWS, ROWS))
    small = write_manifest(tmp_path / "small.parquet", table(0, 100))
    command = [sys.executable, "-c", CHILD, small, tmp_path / "large", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    rows, left = map(int, done.stdout.split())
    assert rows == FILES * ROWS
    assert left < MOST_MB * 1_000_000


def table(first, rows):
    ids = [f"row-{number:010}" for number in range(first, first + rows)]
    return pa.table({"id": ids, "uri": ["a.jpg"] * rows})
