"""Reads an output again and again, as users of the dataset do, and records what must not happen.

Must not happen: a file that cannot be read, an id that exists twice, an id that vanishes, a text
that changes. As a program: reads until the end of stdin, then prints its report on stdout.
"""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
MIN_PAUSE_S = 0.3
TIME_FRACTION = 0.2  # that it spends on reading, to leave the cores to the job
MAX_ERRORS = 20


@dataclass
class Seen:
    """polls: that found rows. growths: polls that found more than before.

    rows, files: of the last poll. wrong: the errors.
    """

    polls: int = 0
    growths: int = 0
    rows: int = 0
    files: int = 0
    wrong: list[str] = field(default_factory=list)


class Reader:
    """Reads one output in an S3 bucket, served at `endpoint`."""

    def __init__(self, path: str, endpoint: str) -> None:
        import pyarrow.fs as pafs

        self._fs = pafs.S3FileSystem(
            access_key="testing",
            secret_key="testing",
            region="us-east-1",
            scheme="http",
            endpoint_override=endpoint.removeprefix("http://"),
        )
        self._path = path
        self._known: dict[str, str] = {}
        self.seen = Seen()

    def poll(self) -> None:
        """One poll: lists the files and reads all of them."""
        import pyarrow.dataset as pads

        try:
            dataset = pads.dataset(
                self._path, filesystem=self._fs, format="parquet", partitioning="hive"
            )
            table = dataset.to_table(columns=["id", "text"]) if dataset.files else None
        except FileNotFoundError:
            if self._known:
                self._add_error("the output is gone, or a file between being listed and being read")
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, a reader was broken
            self._add_error(f"{type(error).__name__}: {error}")
            return
        if table is None:
            if self._known:
                self._add_error("no file is left")
            return
        self._compare(table["id"].to_pylist(), table["text"].to_pylist())
        self.seen.polls += 1
        self.seen.growths += table.num_rows > self.seen.rows
        self.seen.rows, self.seen.files = table.num_rows, len(dataset.files)

    def _compare(self, ids: list[str], texts: list[str]) -> None:
        doubled = [key for key, number in Counter(ids).items() if number > 1]
        if doubled:
            self._add_error(f"{len(doubled)} ids are there twice: {doubled[:3]}")
        now = dict(zip(ids, texts, strict=True))
        gone = self._known.keys() - now.keys()
        if gone:
            self._add_error(f"{len(gone)} ids have vanished: {sorted(gone)[:3]}")
        changed = [key for key in self._known.keys() & now.keys() if self._known[key] != now[key]]
        if changed:
            self._add_error(f"{len(changed)} texts have changed: {changed[:3]}")
        self._known |= now

    def _add_error(self, error: str) -> None:
        if len(self.seen.wrong) < MAX_ERRORS:
            self.seen.wrong.append(f"poll {self.seen.polls}: {error}")


@contextmanager
def reading(path: str, endpoint: str) -> Iterator[Seen]:
    """Reads in a process of its own; the report is filled in at the end."""
    seen = Seen()
    command = [sys.executable, "-m", "tests.soak.reader", path, endpoint]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield seen
    finally:
        output = process.communicate(timeout=60)[0]
        vars(seen).update(json.loads(output))


def main(path: str, endpoint: str) -> None:
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    reader = Reader(path, endpoint)
    while not ended.is_set():
        start = time.monotonic()
        reader.poll()
        ended.wait(max(MIN_PAUSE_S, (time.monotonic() - start) * (1 / TIME_FRACTION - 1)))
    reader.poll()
    print(json.dumps(asdict(reader.seen)))


if __name__ == "__main__":
    main(*sys.argv[1:])
