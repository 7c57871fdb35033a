"""Runs the decoders on hostile media in a child process with ceilings, and tells what came of it.

The child's memory is bounded by the system itself; its hangs and crashes are verdicts like others.
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
class Request:
    """What to decode: bytes, or the file at a path. The rest as `Processor.prepare_media` has it.

    strict: warnings are errors, as in some programs that use the library.
    """

    data: bytes | Path
    kind: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    strict: bool = False


@dataclass(frozen=True)
class Verdict:
    """outcome: "ok", a code of MediaError or PromptError, "hang", "crash", "wrong" (an unsound
    answer or another error) or "reached out" (for a network, a program or another file).

    seconds: of the processor. peak: bytes of memory that came on top of what the child had.
    """

    outcome: str
    message: str
    seconds: float
    peak: int


class Decoding:
    """A child process that decodes one medium after another; a new one after each that it dies of.

    memory: bytes that a medium may take. timeout_s: seconds. limits: of MediaLimits, by name.
    folder: where the child works and puts temporary files; nobody else's.
    """

    def __init__(
        self, folder: Path, memory: int, timeout_s: float, limits: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.memory, self.timeout_s = folder, memory, timeout_s
        self.limits = limits or {}
        self.process: Any = None
        self.connection: Connection

    def __enter__(self) -> "Decoding":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def verdict(self, request: Request) -> Verdict:
        """What comes of one medium."""
        if self.process is None:
            self._start()
        began = time.monotonic()
        try:
            self.connection.send(request)
            if self.connection.poll(self.timeout_s):
                return self.connection.recv()  # type: ignore[no-any-return]
            found = Verdict("hang", f"after {self.timeout_s:g} s", time.monotonic() - began, 0)
        except (EOFError, ConnectionError):
            self.process.join(5)
            message = f"the child ended with {self.process.exitcode}"
            found = Verdict("crash", message, time.monotonic() - began, 0)
        self._stop()
        return found

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, self.folder, self.memory, self.limits)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        assert self.connection.poll(120), "the child does not start"
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
    # What is loaded at first use is no medium's.
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
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes what is wrong to the terminal
    connection.send("ready")
    while True:
        try:
            request: Request = connection.recv()
        except EOFError:
            return
        reached.clear()
        opened.clear()
        connection.send(_judged(processor, request, folder, reached, opened))


def _judged(
    processor: Any, request: Request, folder: Path, reached: list[str], opened: list[str]
) -> Verdict:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, handles, began = _status("VmRSS"), _handles(), time.process_time()
    outcome, message = _decoded(processor, request)
    seconds, peak = time.process_time() - began, _status("VmHWM") - before
    own = [str(request.data)] if isinstance(request.data, Path) else []
    foreign = [one for one in opened if one not in (*own, "/proc/self/clear_refs")]
    foreign = [one for one in foreign if not one.startswith(("/proc/self/", sys.prefix))]
    left = [one.name for one in folder.iterdir() if str(one) not in own]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    if reached or foreign or left or children:
        return Verdict("reached out", f"{reached} {foreign} {left} {children}", seconds, peak)
    if _handles() != handles:
        return Verdict("wrong", "a file was left open", seconds, peak)
    return Verdict(outcome, message, seconds, peak)


def _decoded(processor: Any, request: Request) -> tuple[str, str]:
    from mediamill.model.errors import MediaError, PromptError

    with warnings.catch_warnings(action="error" if request.strict else "ignore"):
        try:
            visual, receipt = processor.prepare_media(
                request.data, request.kind, request.start_s, request.end_s
            )
        except (MediaError, PromptError) as error:
            return error.code, str(error)
        except Exception as error:  # noqa: BLE001 - which others there are is the question
            return "wrong", f"{type(error).__name__}: {error!s:.500}"
    patch = processor.image_rules.patch_size
    problem = _unsound(visual, receipt, request.data, patch)
    return ("wrong", problem) if problem else ("ok", "; ".join(receipt.notes))


def _unsound(visual: Any, receipt: Any, data: bytes | Path, patch: int) -> str | None:
    """What is wrong with an answer, if anything."""
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
        "indices": list(receipt.frame_indices) == sorted(set(receipt.frame_indices)),
        "counts": len(receipt.frame_times_s) == len(receipt.frame_indices),
        "kind": receipt.kind == visual.kind,
    }
    if visual.kind == "image":
        checks["still"] = t == 1 and not receipt.frame_times_s
    else:
        checks["moving"] = t == math.ceil(len(receipt.frame_indices) / 2)
    wrong = [name for name, right in checks.items() if not right]
    return f"unsound: {', '.join(wrong)}: {visual.grid_thw} {receipt}" if wrong else None


def _handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _status(field: str) -> int:
    """Bytes, of this process."""
    with Path("/proc/self/status").open(encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise KeyError(field)
