"""The fork server's process and the decode workers that it forks.

The server has one thread and loads everything once. It decodes nothing: it forks workers, which
turn the media of rows into patches, receipts and token ids, and reports their exit statuses.
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
from mediamill.model.urls import safe_text
from mediamill.pipeline.decoding import socket_messages
from mediamill.pipeline.decoding.decode_request import RenderRequest
from mediamill.pipeline.decoding.message_stream import Sender
from mediamill.pipeline.decoding.probe import Prober, ProbeRequest
from mediamill.pipeline.decoding.sandbox import (
    MemoryLimit,
    Prctl,
    enter_sandbox,
    load_prctl,
    retain_freed_memory,
)
from mediamill.pipeline.decoding.shared_memory import SharedMemory
from mediamill.schemas.errors import ErrorCode, RowError

if TYPE_CHECKING:
    from mediamill.model.inputs import VisualInput
    from mediamill.model.media.receipt import Receipt
    from mediamill.model.processor import Processor
    from mediamill.pipeline.decoding.renderer import Renderer

_MAX_REQUEST_BYTES = 2**32  # requests come from the trusted side
_OUT_OF_MEMORY = ("bad_alloc", "allocate memory", "out of memory", "insufficient memory")
# Libraries that would start a thread for each core when they are loaded.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(fd: int) -> None:
    """Runs the fork server until the other end of the socket `fd` is closed."""
    for name in _ONE_THREAD:
        os.putenv(name, "1")
    # The owner handles signals to the job; this process and its workers end with the owner.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    retain_freed_memory()
    connection = socket.socket(fileno=fd)
    with suppress(socket_messages.ConnectionClosedError):
        request = socket_messages.receive(connection, _MAX_REQUEST_BYTES).content
        module, _, name = request["factory"].partition(":")
        try:
            processor = getattr(importlib.import_module(module), name)(**request["arguments"])
        except Exception as error:  # noqa: BLE001 - the owner raises it
            message = [type(error).__name__, safe_text(str(error))]
            socket_messages.send(connection, {"error": message})
            return
        gc.collect()
        gc.freeze()  # or the first collection of each worker would copy what all share
        socket_messages.send(connection, {"shapes": _patch_shapes(processor)})
        _serve(connection, processor)


def load_processor(
    checkpoint: str,
    image_min_pixels: int | None = None,
    image_max_pixels: int | None = None,
    video: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> "Processor":
    """Loads the processor of a checkpoint folder: the default factory of DecoderPool.

    image_min_pixels, image_max_pixels: None = the checkpoint's own.
    video, limits: arguments of VideoRules and MediaLimits.
    Raises ModelError.
    """
    from mediamill.model.processor import MediaLimits, Processor, VideoRules

    decode_in_one_thread()
    return Processor.load(
        Path(checkpoint),
        image_min_pixels,
        image_max_pixels,
        VideoRules(**(video or {})),
        MediaLimits(**(limits or {})),
    )


def decode_in_one_thread() -> None:
    """Sets up the libraries for one thread in each worker, since there is a worker for each core.

    Every factory of a DecoderPool that reads pictures calls it.
    """
    import torch
    from PIL import AvifImagePlugin
    from pillow_heif import options as heif_options

    torch.set_num_threads(1)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    heif_options.DECODE_THREADS = 1
    # Nobody looks at these parts of a HEIF file, so they need not be opened.
    heif_options.THUMBNAILS = heif_options.DEPTH_IMAGES = heif_options.AUX_IMAGES = False


def _patch_shapes(processor: "Processor") -> dict[str, dict[str, int]]:
    """The arguments of PatchShape, by kind of medium."""
    shapes: dict[str, dict[str, int]] = {}
    for kind, rules in processor.rules.items():
        slices = 1 if kind == "image" else rules.temporal_patch_size
        shapes[kind] = {
            "patch_bytes": 3 * slices * rules.patch_size**2,
            "patch_size": rules.patch_size,
            "merge_size": rules.merge_size,
        }
    return shapes


def _serve(connection: socket.socket, processor: "Processor") -> None:
    """Forks and ends workers until the connection is closed, then ends the remaining ones."""
    prctl = load_prctl()
    workers: set[int] = set()
    try:
        while True:
            request, fds = socket_messages.receive(connection, _MAX_REQUEST_BYTES, max_fds=4)
            if fds:
                pid = _fork(connection, fds, processor, request["max_bytes"], prctl)
                workers.add(pid)
                continue
            pid = request["end"]
            workers.remove(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            # If the worker had ended before, this is its own status, and not that of the SIGKILL.
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            socket_messages.send(connection, {"status": status})
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)


def _fork(
    connection: socket.socket,
    fds: tuple[int, ...],
    processor: "Processor",
    max_bytes: int,
    prctl: Prctl | None,
) -> int:
    """Forks a worker and returns its process id.

    fds: the worker's connection, its pipe for replies, the doorbell, and the shared memory.
    """
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            connection.close()
            enter_sandbox(server, prctl)
            connection_fd, pipe, doorbell, memory_fd = fds
            memory = SharedMemory(memory_fd, max_bytes)
            os.close(memory_fd)
            connection, replies = socket.socket(fileno=connection_fd), Sender(pipe, doorbell)
            with suppress(socket_messages.ConnectionClosedError):
                _run_worker(connection, replies, memory, processor, MemoryLimit(max_bytes))
            os._exit(0)
        finally:
            os._exit(1)
    for fd in fds:
        os.close(fd)
    socket_messages.send(connection, {"worker": pid})
    return pid


def _run_worker(
    connection: socket.socket,
    replies: Sender,
    memory: SharedMemory,
    processor: "Processor",
    memory_limit: MemoryLimit,
) -> NoReturn:
    """Decodes batch after batch. Raises ConnectionClosedError."""
    while True:
        request = socket_messages.receive(connection, _MAX_REQUEST_BYTES).content
        end = time.monotonic() + request["start_s"]
        offset = 0
        for row in request["rows"]:
            reply, parts = _decode(processor, row, offset, memory, memory_limit)
            offset += sum(medium.get("bytes", 0) for medium in row["media"])
            # A row that uses shared memory is the last of its batch, since the next row could
            # overwrite it before it is read.
            large = sum(part.nbytes for part in parts) > replies.max_data_bytes
            if large:
                memory.write(parts)
                parts = ()
            reply["data_bytes"] = memory_limit.data_bytes()
            last = large or time.monotonic() > end
            replies.send(json.dumps(reply).encode(), parts, shared=large, last=last)
            if last:
                break
        replies.ring()


def _decode(
    processor: "Processor",
    row: Mapping[str, Any],
    offset: int,
    memory: SharedMemory,
    memory_limit: MemoryLimit,
) -> tuple[dict[str, Any], Sequence[memoryview]]:
    """Returns the reply about one row, and its patches and token ids as bytes.

    offset: where the row's media begin in the shared memory.
    """
    receipts: list[Receipt] = []
    visuals: list[VisualInput] = []
    parts: list[memoryview] = []
    ids: list[list[int]] = []
    probe = failure = None
    stage = "media"
    memory_limit.apply()
    try:
        if row["shrink"] > 1:
            processor = processor.shrunk(row["shrink"])
        for medium in row["media"]:
            data: bytes | Path
            if "path" in medium:
                data = Path(medium["path"])
            else:
                data = memory.read(offset, medium["bytes"])
                offset += medium["bytes"]
            if row["probe"] is not None:
                prober = cast("Prober", processor)
                probe = prober.probe(data, ProbeRequest(**row["probe"])).model_dump()
                continue
            if "render" in medium:
                renderer, request = cast("Renderer", processor), RenderRequest(**medium["render"])
                visual, receipt = renderer.render(data, medium["kind"], request)
            else:
                visual, receipt = processor.prepare_media(
                    data, medium["kind"], medium["start_s"], medium["end_s"]
                )
            visuals.append(visual)
            receipts.append(receipt)
            del data
        stage = "prompt"
        ids = [_prompt_ids(processor, chat, visuals) for chat in row["chats"]]
        ids += _text_ids(processor, row["texts"], max(map(len, ids), default=0))
        arrays = [visual.patches.contiguous().numpy().data for visual in visuals]
        arrays += [memoryview(array("i", text_ids)) for text_ids in ids]
        parts = [values.cast("B") for values in arrays]
        if sum(part.nbytes for part in parts) > memory.size:
            raise MemoryError
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises fails this row alone
        memory_limit.remove()
        failure = _failure(error, stage, memory.size)
        if stage == "media":
            receipts = []
        visuals, parts, ids = [], [], []
    if row["probe"] is not None:
        return {"probe": probe, "failure": failure}, ()
    reply = {
        "receipts": [vars(receipt) for receipt in receipts],
        "visuals": [{"kind": visual.kind, "grid_thw": visual.grid_thw} for visual in visuals],
        "ids": [len(text_ids) for text_ids in ids],
        "failure": failure,
    }
    return reply, parts


def _prompt_ids(
    processor: "Processor", chat: Mapping[str, Any], visuals: "Sequence[VisualInput]"
) -> list[int]:
    """The token ids of a chat, or of a prompt and a system text."""
    messages = chat.get("messages")
    if messages is None:
        kinds = [visual.kind for visual in visuals]
        messages = processor.user_message(chat["prompt"], kinds, chat["system"])
    return processor.build_prompt(messages, visuals)


def _text_ids(processor: "Processor", texts: Sequence[str], prompt_tokens: int) -> list[list[int]]:
    """The token ids of each text that may follow the prompt."""
    all_ids = []
    for number, text in enumerate(texts, start=1):
        if control := processor.tokenizer.control_tokens_in(text):
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f"text {number} of those to score holds the control string {control[0]}, which "
                "only the chat template may write",
            )
        ids = processor.tokenizer.encode(text)
        max_tokens = processor.max_context - prompt_tokens
        if len(ids) > max_tokens:
            raise RowError(
                ErrorCode.CONTEXT_TOO_LONG,
                f"text {number} of those to score has {len(ids)} tokens, and the model's "
                f"context of {processor.max_context} has room for {max_tokens} after the prompt",
            )
        all_ids.append(ids)
    return all_ids


def _failure(error: Exception, stage: str, max_bytes: int) -> dict[str, str]:
    """The arguments of RowFailure."""
    if _is_out_of_memory(error):
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
    return {"code": str(code), "message": safe_text(text)}


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is, or was caused by, a failed allocation."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # `raise x from x` is its own cause
        seen.add(id(error))
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
