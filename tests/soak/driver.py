"""Runs the command in a terminal of its own, and reads its live view as a user would."""

import os
import pty
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ROWS = re.compile(r"([\d,]+) of [\d,]+ rows")
_GENERATED = re.compile(r"([\d,]+) generated")  # shown until the first of them are written
_TAIL = 6000  # characters of the output that are kept


class Driver:
    """`mediamill run JOB.yaml`. rows: answered so far, by its view."""

    def __init__(self, job: Path, environment: dict[str, str]) -> None:
        ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mediamill", "run", str(job), "--json"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            start_new_session=True,
        )
        os.close(theirs)
        self.rows = 0
        self._changed = time.monotonic()
        self._output = ""
        self._reader = threading.Thread(target=self._listen, args=(ours,), daemon=True)
        self._reader.start()

    @property
    def unchanged_s(self) -> float:
        """Seconds since `rows` last changed, or since the start."""
        return time.monotonic() - self._changed

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def finish(self) -> tuple[int, str, str]:
        """Waits for its end. Returns exit code, stdout and the end of stderr."""
        output = self.process.communicate()[0]
        self._reader.join(5)
        return self.process.returncode, output, self.stderr()

    def stderr(self) -> str:
        """The end of its output, without the progress lines that were overwritten."""
        lines = self._output.replace("\r\n", "\n").split("\n")
        return "\n".join(line.rpartition("\r")[2].replace("\x1b[K", "") for line in lines)

    def _listen(self, terminal: int) -> None:
        while True:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            self._output = (self._output + data.decode(errors="replace"))[-_TAIL:]
            shown = _ESCAPES.sub("", self._output)
            if matches := [*_ROWS.finditer(shown)]:
                generated = _GENERATED.search(shown, matches[-1].end())
                counts = [matches[-1][1], *([generated[1]] if generated else [])]
                rows = sum(int(count.replace(",", "")) for count in counts)
                if rows != self.rows:
                    self.rows, self._changed = rows, time.monotonic()
        os.close(terminal)
