"""The command `python -m mediamill.model`: answers one question about pictures and videos.

Exit codes: 0 answered; 2 wrong usage, folder, medium or prompt; 130 interrupted (Ctrl-C).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mediamill.model.chat import Answer
    from mediamill.model.sampling import Sampling


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code. argv: None = the arguments of this process."""
    try:
        return _run(_parser().parse_args(argv))
    except (ValueError, OSError) as error:  # all errors of `model` are ValueErrors
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.describe:
        from mediamill.model.describe import describe

        print(describe(_folder(options.folder), options.mrope))
        return 0
    if options.prompt is None:
        raise ValueError("expected --prompt with a question (- reads it from stdin), or --describe")
    sampling = _sampling(options)
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    _check_device(options.device)
    # torch takes seconds to import: wrong usage is reported before.
    from mediamill.model.chat import Chat
    from mediamill.model.media.frame_sampling import VideoRules

    names = ("device", "dtype", "attention", "mrope", "min_pixels", "max_pixels")
    video = VideoRules(options.fps, options.num_frames, max_frames=options.max_frames)
    loading = {name: getattr(options, name) for name in names}
    chat = Chat.load(_folder(options.folder), **loading, video=video)
    parts = [{"type": kind, kind: source} for kind, source in options.media or []]
    content = [*parts, {"type": "text", "text": prompt}]
    system = [] if options.system is None else [{"role": "system", "content": options.system}]
    messages = [*system, {"role": "user", "content": content}]
    _print_answer(chat.answer(messages, sampling, options.add_vision_id), options)
    return 0


def _folder(name: str) -> str:
    """Returns the folder of a checkpoint; `built-in` is the one that ships with this program."""
    from mediamill.model.tiny import CHECKPOINT

    return str(CHECKPOINT) if name == "built-in" and not Path(name).exists() else name


def _print_answer(answer: "Answer", options: argparse.Namespace) -> None:
    completion = answer.completion
    if options.json and completion is not None:
        values = {
            "text": answer.text,
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.prompt_tokens,
            "visual_tokens": completion.visual_tokens,
            "output_tokens": len(completion.output_ids),
            "mean_logprob": completion.mean_logprob,
        }
        if options.show_receipt:
            values["receipts"] = [asdict(receipt) for receipt in answer.receipts]
        print(json.dumps(values, ensure_ascii=False))
        return
    print(answer.text)
    for receipt in answer.receipts if options.show_receipt else ():
        frames = f", {len(receipt.frame_indices)} frames" if receipt.frame_indices else ""
        notes = "".join(f"; {note}" for note in receipt.notes)
        print(
            f"{receipt.kind} of {receipt.source_width} x {receipt.source_height} seen as "
            f"{receipt.width} x {receipt.height}{frames}, {receipt.visual_tokens} tokens{notes}",
            file=sys.stderr,
        )


def _sampling(options: argparse.Namespace) -> "Sampling":
    from mediamill.model.sampling import Sampling

    names = vars(options).keys() & {field.name for field in fields(Sampling)}
    values = {name: getattr(options, name) for name in names}
    values["stop"] = None if options.stop is None else tuple(options.stop)
    return Sampling(**values)


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device="cpu" if name == "auto" else name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from None


class _Parser(argparse.ArgumentParser):
    """Raises usage errors as one sentence, instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} ({self.prog} --help lists the arguments)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m mediamill.model",
        description="Ask a Qwen2-VL checkpoint about pictures and videos.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "folder",
        help="checkpoint in hub format: a path or URL (s3://..., hf://owner/name), or built-in",
    )
    for kind in ("image", "video"):
        add(
            f"--{kind}",
            dest="media",
            action="append",
            metavar="FILE",
            type=partial(lambda kind, source: (kind, source), kind),
            help=f"a {'picture' if kind == 'image' else 'video'}: path or URL; may be repeated, "
            "and they come in the order given",
        )
    add("--prompt", metavar="TEXT", help="the question; - reads it from stdin")
    add("--system", metavar="TEXT", help="the system message")
    add("--describe", action="store_true", help="describe the folder, without reading its weights")
    add("--json", action="store_true", help="print one JSON object")
    add("--show-receipt", action="store_true", help="also print what the model saw of each medium")
    add("--add-vision-id", action="store_true", help='number the media ("Picture 1: ")')
    group = parser.add_argument_group("generation (default: as in generation_config.json)")
    add = group.add_argument
    add("--max-new-tokens", type=int, default=128, metavar="N", help="default: 128")
    add("--min-new-tokens", type=int, metavar="N")
    add("--temperature", type=float, default=0.0, metavar="T", help="default: 0, greedy")
    add("--top-k", type=int, metavar="K")
    add("--top-p", type=float, metavar="P")
    add("--min-p", type=float, metavar="P")
    add("--repetition-penalty", type=float, metavar="R")
    add("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    add("--seed", type=int, default=0, metavar="S")
    group = parser.add_argument_group("what the model sees (default: as in the folder)")
    add = group.add_argument
    add("--min-pixels", type=int, metavar="N", help="of pictures, height * width")
    add("--max-pixels", type=int, metavar="N")
    add("--fps", type=float, metavar="F", help="frames sampled per second of video")
    add("--num-frames", type=int, metavar="N", help="number of sampled frames, instead of --fps")
    add("--max-frames", type=int, metavar="N")
    group = parser.add_argument_group("how it runs")
    add = group.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    add("--attention", default="auto", help="auto, sdpa, eager or flash")
    add("--mrope", default="original", help="positions of videos: original, or hf5")
    return parser


if __name__ == "__main__":
    sys.exit(main())
