"""Runs the command in a terminal of its own, and reads its progress line as a user would."""

import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
_DONE = re.compile(r"(\d+)/\d+ rows")
_MADE = re.compile(r"(\d+) generated")  # shown until the first of them are written
_TAIL = 6000  # characters that are kept to tell what happened


class Driver:
    """`mediamill run JOB.yaml`; `rows` that are answered follow its progress line."""

    def __init__(self, job: Path, environment: dict[str, str]) -> None:
        ours, its = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mediamill", "run", str(job), "--json"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=its,
            text=True,
            start_new_session=True,
        )
        os.close(its)
        self.rows = 0
        self._moved = time.monotonic()
        self._said = ""
        self._reader = threading.Thread(target=self._listen, args=(ours,), daemon=True)
        self._reader.start()

    @property
    def moved_s(self) -> float:
        """Seconds since a row was last seen to be answered, or since it began."""
        return time.monotonic() - self._moved

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def finish(self) -> tuple[int, str, str]:
        """Exit code, stdout and the end of stderr, once it is over."""
        output = self.process.communicate()[0]
        self._reader.join(5)
        return self.process.returncode, output, self.told()

    def told(self) -> str:
        """The end of what it said, without the progress lines that were written over."""
        lines = self._said.replace("\r\n", "\n").split("\n")
        return "\n".join(line.rpartition("\r")[2].replace("\x1b[K", "") for line in lines)

    def _listen(self, terminal: int) -> None:
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            self._said = (self._said + data.decode(errors="replace"))[-_TAIL:]
            if found := _DONE.findall(self._said):
                line = self._said.rpartition("\r")[2]
                made = _MADE.search(line)
                rows = int(found[-1]) + (int(made[1]) if made else 0)
                if rows != self.rows:
                    self.rows, self._moved = rows, time.monotonic()
        os.close(terminal)
