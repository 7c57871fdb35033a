"""Turns the media of a row into patches, receipts and a prompt, in a process of its own.

The nursery is a process with one thread that has imported and loaded everything once. It decodes
nothing; it forks workers, which do, and tells how they ended. Who asks, and what becomes of the
answers, is not known here.
"""

import gc
import importlib
import json
import os
import signal
import socket
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from mediamill.model.errors import MediaError, PromptError
from mediamill.pipeline.decoding import socket_messages
from mediamill.pipeline.decoding.message_stream import Sender
from mediamill.pipeline.decoding.sandbox import (
    Ceiling,
    Prctl,
    confine,
    keep_memory,
    process_control,
)
from mediamill.pipeline.decoding.shared_memory import SharedMemory
from mediamill.schemas.errors import ErrorCode, RowError

if TYPE_CHECKING:
    from mediamill.model.inputs import VisualInput
    from mediamill.model.processor import Processor, Receipt
    from mediamill.pipeline.decoding.probe import Measurer

_MOST = 2**32  # bytes of a request: who sends it is trusted
_MESSAGE = 2000  # characters of an error
_NO_MEMORY = ("bad_alloc", "allocate memory", "out of memory", "insufficient memory")
# Of libraries that would start a thread for each core when they are loaded.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(handle: int) -> None:
    """Is the nursery, until the other end of the socket `handle` is closed."""
    for name in _ONE_THREAD:
        os.putenv(name, "1")
    # Who stops the job tells its processes; this one and its workers go with the last of those.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep_memory()
    link = socket.socket(fileno=handle)
    with suppress(socket_messages.GoneError):
        asked = json.loads(socket_messages.receive(link, _MOST).header)
        module, _, name = asked["factory"].partition(":")
        try:
            processor = getattr(importlib.import_module(module), name)(**asked["settings"])
        except Exception as error:  # noqa: BLE001 - told to who can do something about it
            _tell(link, {"error": [type(error).__name__, str(error)[:_MESSAGE]]})
            return
        gc.collect()
        gc.freeze()  # or the first collection of each worker would copy what all share
        _tell(link, {"shapes": _shapes(processor)})
        _serve(link, processor)


def load_processor(
    checkpoint: str,
    image_min_pixels: int | None = None,
    image_max_pixels: int | None = None,
    video: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> "Processor":
    """The processor of a checkpoint folder, by the rules of a job. Raises ModelError."""
    import torch
    from PIL import AvifImagePlugin

    from mediamill.model.processor import MediaLimits, Processor, VideoRules

    # There is a process for each core.
    torch.set_num_threads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    return Processor.load(
        Path(checkpoint),
        image_min_pixels,
        image_max_pixels,
        VideoRules(**(video or {})),
        MediaLimits(**(limits or {})),
    )


def _shapes(processor: "Processor") -> dict[str, dict[str, int]]:
    """Of each kind, bytes of one patch, and what the grid is counted in."""
    shapes: dict[str, dict[str, int]] = {}
    for kind, rules in processor.rules.items():
        slices = 1 if kind == "image" else rules.temporal_patch_size
        shapes[kind] = {
            "patch_bytes": 3 * slices * rules.patch_size**2,
            "patch_size": rules.patch_size,
            "merge_size": rules.merge_size,
        }
    return shapes


def _serve(link: socket.socket, processor: "Processor") -> None:
    """Forks and ends workers until nobody asks any more, then ends those that are left."""
    prctl = process_control()
    workers: set[int] = set()
    try:
        while True:
            message = socket_messages.receive(link, _MOST, handles=4)
            asked = json.loads(message.header)
            if message.handles:
                workers.add(_fork(link, message.handles, processor, asked["max_bytes"], prctl))
                continue
            number = asked["end"]
            workers.remove(number)
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
            # Of one that has ended already, this is the reason, and not the signal above.
            status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
            _tell(link, {"status": status})
    finally:
        for number in workers:
            os.kill(number, signal.SIGKILL)


def _fork(
    link: socket.socket,
    handles: tuple[int, ...],
    processor: "Processor",
    max_bytes: int,
    prctl: Prctl | None,
) -> int:
    """handles: of the worker's own link, of its answers, of the bell that tells of them, and of the
    memory that it shares with who asks it.
    """
    parent = os.getpid()
    number = os.fork()
    if number == 0:
        try:
            link.close()
            confine(parent, prctl)
            own, parcels, bell, memory = handles
            shared = SharedMemory(memory, max_bytes)
            os.close(memory)
            link, answers = socket.socket(fileno=own), Sender(parcels, bell)
            with suppress(socket_messages.GoneError):  # nobody asks any more
                _work(link, answers, shared, processor, Ceiling(max_bytes))
            os._exit(0)
        finally:
            os._exit(1)
    for handle in handles:
        os.close(handle)
    _tell(link, {"worker": number})
    return number


def _work(
    link: socket.socket,
    answers: Sender,
    shared: SharedMemory,
    processor: "Processor",
    ceiling: Ceiling,
) -> NoReturn:
    """Answers one message after the other. Raises GoneError."""
    while True:
        asked = json.loads(socket_messages.receive(link, _MOST).header)
        end = time.monotonic() + asked["start_s"]
        at = 0
        for row in asked["rows"]:
            told, parts = _answer(processor, row, at, shared, ceiling)
            at += sum(one.get("bytes", 0) for one in row["media"])
            # What is large comes last: the next row could change it before it is read.
            large = sum(part.nbytes for part in parts) > answers.most
            if large:
                shared.write(parts)
                parts = ()
            told["data_bytes"] = ceiling.data_bytes()
            last = large or time.monotonic() > end
            answers.send(json.dumps(told).encode(), parts, shared=large, last=last)
            if last:
                break
        answers.ring()


def _answer(
    processor: "Processor",
    asked: Mapping[str, Any],
    at: int,
    shared: SharedMemory,
    ceiling: Ceiling,
) -> tuple[dict[str, Any], Sequence[memoryview]]:
    """What there is to say about one row, and its patches and ids as bytes.

    at: where the row's media begin in the memory.
    """
    receipts: list[Receipt] = []
    visuals: list[VisualInput] = []
    parts: list[memoryview] = []
    ids: list[list[int]] = []
    measured = None
    failure, stage = None, "media"
    ceiling.hold()
    try:
        for one in asked["media"]:
            data: bytes | Path
            if "path" in one:
                data = Path(one["path"])
            else:
                data = shared.read(at, one["bytes"])
                at += one["bytes"]
            if asked["measure"] is not None:
                measured = cast("Measurer", processor).measure(data, asked["measure"])
                continue
            wanted = one["kind"], one["start_s"], one["end_s"]
            visual, receipt = processor.prepare_media(data, *wanted)
            visuals.append(visual)
            receipts.append(receipt)
            del data
        stage = "prompt"
        ids = [_prompt(processor, chat, visuals) for chat in asked["chats"]]
        ids += _continuations(processor, asked["texts"], max(map(len, ids), default=0))
        parts = [memoryview(one.patches.contiguous().numpy().data).cast("B") for one in visuals]
        parts += [memoryview(array("i", one)).cast("B") for one in ids]
        if sum(part.nbytes for part in parts) > shared.size:
            raise MemoryError
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises is this row's fault
        ceiling.lift()
        failure = _failure(error, stage, shared.size)
        if stage == "media":
            receipts = []
        visuals, parts, ids = [], [], []
    if asked["measure"] is not None:
        return {"measured": measured, "failure": failure}, ()
    told = {
        "receipts": [_receipt(receipt) for receipt in receipts],
        "visuals": [{"kind": one.kind, "grid_thw": one.grid_thw} for one in visuals],
        "ids": [len(one) for one in ids],
        "failure": failure,
    }
    return told, parts


def _prompt(
    processor: "Processor", chat: Mapping[str, Any], visuals: "Sequence[VisualInput]"
) -> list[int]:
    """The ids of a chat, or of a text and a system text."""
    messages = chat.get("messages")
    if messages is None:
        kinds = [visual.kind for visual in visuals]
        messages = processor.user_message(chat["prompt"], kinds, chat["system"])
    return processor.build_prompt(messages, visuals)


def _continuations(
    processor: "Processor", texts: Sequence[str], prompt_tokens: int
) -> list[list[int]]:
    """The ids of each text that may follow a prompt."""
    found = []
    for number, text in enumerate(texts, start=1):
        if control := processor.tokenizer.control_tokens_in(text):
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f"text {number} of those to score holds the control string {control[0]}, which "
                "only the chat template may write",
            )
        found.append(processor.tokenizer.encode(text))
        most = processor.max_context - prompt_tokens
        if len(found[-1]) > most:
            raise RowError(
                ErrorCode.CONTEXT_TOO_LONG,
                f"text {number} of those to score has {len(found[-1])} tokens, and the model's "
                f"context of {processor.max_context} has room for {most} after the prompt",
            )
    return found


def _receipt(receipt: "Receipt") -> dict[str, Any]:
    return vars(receipt)


def _failure(error: Exception, stage: str, max_bytes: int) -> dict[str, str]:
    """The code and the sentence of an error."""
    if _is_no_memory(error):
        code: str = ErrorCode.DECODE_TOO_LARGE
        text = (
            f"the row's media take more memory than the limit of {max_bytes} bytes: "
            "raise limits.decode_bytes"
        )
    elif isinstance(error, MediaError | PromptError | RowError):
        code, text = error.code, str(error)
    else:
        code = ErrorCode.DECODE_CORRUPT if stage == "media" else ErrorCode.PROMPT_INVALID
        text = f"{type(error).__name__}: {error}"
    # Texts of the row may hold what is no Unicode.
    return {"code": str(code), "message": text[:_MESSAGE].encode(errors="replace").decode()}


def _is_no_memory(error: BaseException | None) -> bool:
    """Whether an error is, or comes of, memory that was not given."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tell(link: socket.socket, header: Mapping[str, Any]) -> None:
    socket_messages.send(link, json.dumps(header).encode())
