"""The engines under comparison, each a function from jobs to tokens.

Each takes decoded pictures and returns token ids. It does its own preparation, and reports the
CPU-seconds of it.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.workload import IMAGE, Job
from mediamill.model.engine import Engine, Request
from mediamill.model.inputs import VisualInput
from mediamill.model.media.patches import patchify_image
from mediamill.model.sampling import Sampling
from tests import oracle

PATCH = 14


@dataclass
class Timing:
    """One run. seconds: CPU-seconds of the process. parts: those of each phase."""

    tokens: list[list[int]]
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)


class Ours:
    """The engine of this project."""

    def __init__(self, folder: Path, dtype: str, **options: Any) -> None:
        self.engine = Engine.load(folder, device="cpu", dtype=dtype, **options)
        self.clock = _Clock()
        self.clock.watch(self.engine.model.visual, "encode", lambda *_: "vision")
        self.clock.watch(self.engine.model, "hidden_states", _phase)
        self.clock.watch(self.engine.model, "logits", lambda *_: "logits")

    def run(self, jobs: Sequence[Job]) -> Timing:
        self.clock.parts.clear()
        started = time.process_time()
        requests = []
        for number, job in enumerate(jobs):
            pixels = torch.from_numpy(job.picture).permute(2, 0, 1)
            grid = (1, pixels.shape[1] // PATCH, pixels.shape[2] // PATCH)
            visual = VisualInput("image", patchify_image(pixels), grid)
            sampling = Sampling(max_new_tokens=job.new, eos_token_ids=())
            requests.append(Request(str(number), job.ids, (visual,), sampling))
        prepared = time.process_time()
        done = {one.id: one for one in self.engine.generate(requests)}
        seconds = time.process_time() - started
        errors = [one.error for one in done.values() if one.error]
        if errors:
            raise RuntimeError(errors[0])
        parts = {"prepare": prepared - started, **self.clock.parts}
        parts["rest"] = seconds - sum(parts.values())
        return Timing([done[str(i)].output_ids for i in range(len(jobs))], seconds, parts)


def _phase(hidden: torch.Tensor, positions: torch.Tensor, attend: Any, *_: Any) -> str:
    return "decode" if all(length == 1 for length in attend.lengths) else "prefill"


class _Clock:
    """Measures the CPU-seconds of methods, by phase. A function names the phase of a call."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    def watch(self, owner: object, name: str, phase: Callable[..., str]) -> None:
        inner = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            result = inner(*arguments, **named)
            key = phase(*arguments)
            self.parts[key] = self.parts.get(key, 0.0) + time.process_time() - started
            return result

        object.__setattr__(owner, name, timed)


class Reference:
    """transformers' generate(): batches of prompts sorted by length, padded on the left."""

    def __init__(self, folder: Path, dtype: torch.dtype, rows: int) -> None:
        self.model = oracle.load_model(folder, dtype)
        self.processor = oracle.load_image_processor(folder)
        self.rows = rows
        for key in ("eos_token_id", "temperature", "top_p", "top_k"):
            setattr(self.model.generation_config, key, None)
        self.model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> Timing:
        started, prepare = time.process_time(), 0.0
        tokens: list[list[int]] = [[] for _ in jobs]
        order = sorted(range(len(jobs)), key=lambda i: len(jobs[i].ids))
        for first in range(0, len(jobs), self.rows):
            chosen = order[first : first + self.rows]
            begun = time.process_time()
            pictures = [torch.from_numpy(jobs[i].picture).permute(2, 0, 1) for i in chosen]
            pixels = self.processor(pictures, return_tensors="pt", do_convert_rgb=False)
            prepare += time.process_time() - begun
            width = max(len(jobs[i].ids) for i in chosen)
            ids = torch.tensor([[0] * (width - len(jobs[i].ids)) + jobs[i].ids for i in chosen])
            mask = torch.tensor(
                [[0] * (width - len(jobs[i].ids)) + [1] * len(jobs[i].ids) for i in chosen]
            )
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                mm_token_type_ids=(ids == IMAGE).long(),
                pixel_values=pixels["pixel_values"].to(self.model.dtype),
                image_grid_thw=pixels["image_grid_thw"],
                max_new_tokens=max(jobs[i].new for i in chosen),
                do_sample=False,
            )
            for i, row in zip(chosen, out[:, width:].tolist(), strict=True):
                tokens[i] = row[: jobs[i].new]
        return Timing(tokens, time.process_time() - started, {"prepare": prepare})


class Vllm:
    """vLLM in a process of its own Python, which reads jobs from files and prints JSON."""

    def __init__(self, python: str, folder: Path, dtype: str, exchange: Path) -> None:
        """exchange: a folder for the files between the two processes, and for vLLM's log."""
        self.exchange = exchange
        self.log = (exchange / "vllm.log").open("w")
        script = Path(__file__).with_name("vllm_child.py")
        self.child = subprocess.Popen(
            [str(Path(python).absolute()), str(script), str(folder), dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=self.exchange,
        )
        self.version = self._answer()["version"]

    def run(self, jobs: Sequence[Job]) -> Timing:
        np.savez(self.exchange / "pictures.npz", *[job.picture for job in jobs])
        prompts = [{"before": j.before, "after": j.after, "new": j.new} for j in jobs]
        (self.exchange / "prompts.json").write_text(json.dumps(prompts))
        assert self.child.stdin is not None
        self.child.stdin.write(f"{self.exchange}\n")
        self.child.stdin.flush()
        answer = self._answer()
        return Timing(answer["tokens"], answer["seconds"], {"prepare": answer["prepare"]})

    def close(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.child.wait(60)
        self.log.close()

    def _answer(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        lines: Iterable[str] = self.child.stdout
        for line in lines:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))  # type: ignore[no-any-return]
        log_end = (self.exchange / "vllm.log").read_text()[-2000:]
        raise RuntimeError(f"the process with vllm ended:\n{log_end}")


@contextmanager
def one_thread() -> Any:
    """Limits torch to one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
