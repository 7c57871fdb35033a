"""Decodes hostile media in a worker process with limits on memory and time.

The system itself limits the worker's memory. Hangs and crashes are outcomes like others.
"""

import hashlib
import math
import multiprocessing
import os
import resource
import sys
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

MIB = 1024**2
_EVENTS = ("socket.connect", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system")


@dataclass(frozen=True)
class DecodeRequest:
    """What to decode: bytes, or the file at a path; the rest as for Processor.prepare_media.

    strict: warnings are errors, as in some programs that use the library.
    """

    data: bytes | Path
    kind: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    strict: bool = False


@dataclass(frozen=True)
class Verdict:
    """The outcome of one decoding.

    outcome: "ok", a code of MediaError or PromptError, "hang", "crash", "wrong" (an inconsistent
        result or another exception) or "reached out" (to a network, a program or another file).
    seconds: processor time. peak: bytes of memory above what the worker used before.
    """

    outcome: str
    message: str
    seconds: float
    peak: int


class DecodeWorker:
    """A worker process that decodes one medium after another; it is replaced when it dies.

    folder: the worker's current and temporary folder, used by no other process.
    memory: bytes that a medium may take. timeout_s: for one medium.
    limits: fields of MediaLimits, by name.
    """

    def __init__(
        self, folder: Path, memory: int, timeout_s: float, limits: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.memory, self.timeout_s = folder, memory, timeout_s
        self.limits = limits or {}
        self.process: Any = None
        self.connection: Connection

    def __enter__(self) -> "DecodeWorker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def verdict(self, request: DecodeRequest) -> Verdict:
        """Decodes one medium and returns the outcome."""
        if self.process is None:
            self._start()
        began = time.monotonic()
        try:
            self.connection.send(request)
            if self.connection.poll(self.timeout_s):
                return self.connection.recv()  # type: ignore[no-any-return]
            verdict = Verdict("hang", f"after {self.timeout_s:g} s", time.monotonic() - began, 0)
        except (EOFError, ConnectionError):
            self.process.join(5)
            message = f"the worker ended with {self.process.exitcode}"
            verdict = Verdict("crash", message, time.monotonic() - began, 0)
        self._stop()
        return verdict

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, worker_end = context.Pipe()
        arguments = (worker_end, self.folder, self.memory, self.limits)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        worker_end.close()
        assert self.connection.poll(120), "the worker does not start"
        self.connection.recv()

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _serve(connection: Connection, folder: Path, memory: int, limits: dict[str, Any]) -> None:
    os.chdir(folder)
    os.environ["TMPDIR"] = str(folder)
    import torch

    from mediamill.model.media.limits import MediaLimits
    from mediamill.model.processor import Processor
    from tests import media
    from tests.hostile.samples import PICTURES

    torch.set_num_threads(1)
    checkpoint = Path(__file__).parents[2] / "model" / "tiny" / "checkpoint"
    processor = Processor.load(checkpoint, limits=MediaLimits(**limits))
    # Libraries that load at first use must not count for a medium.
    processor.prepare_media(PICTURES["JPEG EXIF"]())
    processor.prepare_media(media.video(media.numbered_frames(3), codec="mpeg4"))
    reached: list[str] = []
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            reached.append(f"{event}{arguments!r:.200}")
        if event == "open" and isinstance(arguments[0], str | bytes):
            opened.append(os.fsdecode(arguments[0]))

    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _status("VmData") + memory
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes its errors to the terminal
    connection.send("ready")
    while True:
        try:
            request: DecodeRequest = connection.recv()
        except EOFError:
            return
        reached.clear()
        opened.clear()
        connection.send(_verdict(processor, request, folder, reached, opened))


def _verdict(
    processor: Any, request: DecodeRequest, folder: Path, reached: list[str], opened: list[str]
) -> Verdict:
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, handles, began = _status("VmRSS"), _handles(), time.process_time()
    outcome, message = _decoded(processor, request)
    seconds, peak = time.process_time() - began, _status("VmHWM") - before
    medium = [str(request.data)] if isinstance(request.data, Path) else []
    foreign = [path for path in opened if path not in (*medium, "/proc/self/clear_refs")]
    foreign = [path for path in foreign if not path.startswith(("/proc/self/", sys.prefix))]
    left = [path.name for path in folder.iterdir() if str(path) not in medium]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    if reached or foreign or left or children:
        return Verdict("reached out", f"{reached} {foreign} {left} {children}", seconds, peak)
    if _handles() != handles:
        return Verdict("wrong", "a file was left open", seconds, peak)
    return Verdict(outcome, message, seconds, peak)


def _decoded(processor: Any, request: DecodeRequest) -> tuple[str, str]:
    from mediamill.model.errors import MediaError, PromptError

    with warnings.catch_warnings(action="error" if request.strict else "ignore"):
        try:
            visual, receipt = processor.prepare_media(
                request.data, request.kind, request.start_s, request.end_s
            )
        except (MediaError, PromptError) as error:
            return error.code, str(error)
        except Exception as error:  # noqa: BLE001 - any other exception is a finding
            return "wrong", f"{type(error).__name__}: {error!s:.500}"
    patch = processor.image_rules.patch_size
    problem = _inconsistency(visual, receipt, request.data, patch)
    return ("wrong", problem) if problem else ("ok", "; ".join(receipt.notes))


def _inconsistency(visual: Any, receipt: Any, data: bytes | Path, patch: int) -> str | None:
    """Returns what is inconsistent in a result, or None."""
    content = data.read_bytes() if isinstance(data, Path) else data
    t, h, w = visual.grid_thw
    checks = {
        "sha256": receipt.sha256 == hashlib.sha256(content).hexdigest(),
        "rows": visual.patches.shape[0] == t * h * w > 0,
        "dtype": str(visual.patches.dtype) == "torch.uint8",
        "grid": h % 2 == w % 2 == 0 and (receipt.height, receipt.width) == (h * patch, w * patch),
        "tokens": receipt.visual_tokens == visual.tokens == t * h * w // 4,
        "source": min(receipt.source_height, receipt.source_width) >= 1,
        "times": all(math.isfinite(time) and time >= 0 for time in receipt.frame_times_s),
        "order": list(receipt.frame_times_s) == sorted(receipt.frame_times_s),
        "indices": list(receipt.frame_indices) == sorted(receipt.frame_indices),
        # Only where the rate varies, a frame that is shown for long may be taken twice.
        "distinct": len(set(receipt.frame_indices)) == len(receipt.frame_indices)
        or any(note.startswith("variable rate") for note in receipt.notes),
        "counts": len(receipt.frame_times_s) == len(receipt.frame_indices),
        "kind": receipt.kind == visual.kind,
    }
    if visual.kind == "image":
        checks["still"] = t == 1 and not receipt.frame_times_s
    else:
        checks["moving"] = t == math.ceil(len(receipt.frame_indices) / 2)
    wrong = [name for name, holds in checks.items() if not holds]
    return f"inconsistent: {', '.join(wrong)}: {visual.grid_thw} {receipt}" if wrong else None


def _handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _status(field: str) -> int:
    """Returns a field of this process's status, in bytes."""
    with Path("/proc/self/status").open(encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(field)
