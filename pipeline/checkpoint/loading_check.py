"""Checks, before Ray starts, that every process of a job will be able to load the checkpoint.

Does what the workers and replicas do first, except reading the values of the weights: tokenizer,
chat template, pixel and frame rules with the job's limits, names and shapes of the tensors, the
canary's medium, and the job's own prompts. That takes torch, which the driver does without: it is
imported in a process of its own, unless this one has it already. What has passed is remembered on
this machine, since that process takes seconds.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import mediamill
from mediamill.model.errors import ModelError, PromptError
from mediamill.pipeline.checkpoint.remembered_checks import is_remembered, remember
from mediamill.pipeline.faults import RunError, root_cause
from mediamill.pipeline.replica.canary import canary_prompt
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig

if TYPE_CHECKING:
    from mediamill.model.media.image_rules import ImageRules
    from mediamill.model.processor import Processor

_TIMEOUT_S = 900.0  # libraries and a remote checkpoint's tokenizer may come slowly
_LIBRARIES = ("torch", "tokenizers", "jinja2", "numpy", "PIL", "av")
_SHOWN = 120  # characters of a text in a sentence
# The process finds modules where this one does.
_PROGRAM = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from mediamill.pipeline.checkpoint.loading_check import main
main()
"""


@dataclass(frozen=True)
class PromptTexts:
    """The texts that are asked about every row; a row's own are not among them."""

    prompts: Sequence[str] = ()
    system: str | None = None


@dataclass(frozen=True)
class LoadingCheck:
    """A check of a job. model: the checkpoint's folder. content: the hash of the checkpoint."""

    job: JobConfig
    model: Place
    content: str
    texts: PromptTexts = PromptTexts()

    @property
    def needs_process(self) -> bool:
        """Whether `run` starts a process, and mostly waits for it."""
        return "torch" not in sys.modules and not self._has_passed

    def run(self) -> None:
        """Raises JobError when no process could load the checkpoint, or no row could be answered.

        Does nothing if the same check has passed on this machine.
        """
        if self._has_passed:
            return
        ask = _problem if "torch" in sys.modules else _ask_process
        folder = self.model.path if self.model.is_local else self.model.url
        problem = ask(self.job, folder, self.texts)
        if problem is not None:
            raise JobError(problem)
        if self._digest is not None:
            remember(self.job.resources.cache, self._digest)

    @cached_property
    def _has_passed(self) -> bool:
        return self._digest is not None and is_remembered(self.job.resources.cache, self._digest)

    @cached_property
    def _digest(self) -> str | None:
        """A digest of all that the check reads; None with a canary, whose medium may change."""
        if self.job.canary.uri is not None:
            return None
        parts = [
            self.content,
            self.job.image.model_dump_json(),
            self.job.video.model_dump_json(),
            [list(self.texts.prompts), self.texts.system],
            _installation(),
        ]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _installation() -> list[object]:
    """Returns what changes when Python, a library or this program is another one."""
    own = [Path(__file__), *sorted(Path(mediamill.__file__).parent.glob("model/**/*.py"))]
    places = [str(path) for path in own]
    for name in _LIBRARIES:
        spec = importlib.util.find_spec(name)
        places.append((spec and spec.origin) or name)
    return [sys.version, [(place, *_stamp(Path(place))) for place in places]]


def _stamp(path: Path) -> tuple[int, int]:
    """The size and the time of the last change of a file; zeros without one."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def main() -> None:
    """Answers one check: JSON on stdin, a sentence or null as JSON on stdout."""
    request = json.load(sys.stdin)
    job = JobConfig.model_validate_json(request["job"])
    texts = PromptTexts(request["prompts"], request["system"])
    json.dump(_problem(job, request["folder"], texts), sys.stdout)


def _problem(job: JobConfig, folder: str, texts: PromptTexts) -> str | None:
    """Returns why the job can never work with the checkpoint; None if nothing is known."""
    from mediamill.model.checkpoint.folder import Folder
    from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
    from mediamill.model.processor import Processor, VideoRules
    from mediamill.model.weights import check_weights

    try:
        checkpoint = Folder.of(folder)
        GenerationDefaults.load(checkpoint)
        rules = VideoRules(**job.video.model_dump(exclude={"mrope"}))
        image = job.image
        # First with the checkpoint's own limits, to tell its mistakes from the job's.
        own = Processor.load(checkpoint)
        if problem := _crossed_limits(job, own):
            return problem
        processor = Processor.load(checkpoint, image.min_pixels, image.max_pixels, rules)
        if checkpoint.is_local:  # else its weights would be copied
            check_weights(checkpoint)
        if job.canary.uri is not None:
            canary_prompt(job, processor, Path.cwd())
        return _prompt_problem(processor, texts)
    except (JobError, ModelError) as error:
        return str(error)


def _crossed_limits(job: JobConfig, own: "Processor") -> str | None:
    """Returns the first limit of the job that crosses the checkpoint's, its context or another."""
    for section, config, rules in (
        ("image", job.image, own.image_rules),
        ("video", job.video, own.frame_rules),
    ):
        low, high = config.min_pixels, config.max_pixels
        if low is None and high is not None and high < rules.min_pixels:
            return (
                f"{section}.max_pixels: found {high}, below the checkpoint's min_pixels "
                f"{rules.min_pixels}, expected at least that, or {section}.min_pixels with it"
            )
        if high is None and low is not None and low > rules.max_pixels:
            return (
                f"{section}.min_pixels: found {low}, above the checkpoint's max_pixels "
                f"{rules.max_pixels}, expected at most that, or {section}.max_pixels with it"
            )
        area = rules.factor**2
        if low is not None and low > own.max_context * area:
            return (
                f"{section}.min_pixels: found {low}, which makes at least {-(-low // area)} visual "
                f"tokens, expected at most {own.max_context * area}: the model takes "
                f"{own.max_context} tokens"
            )
    return _crossed_budget(job, own.frame_rules)


def _crossed_budget(job: JobConfig, rules: "ImageRules") -> str | None:
    """Returns the budget of a video that not even one frame of the smallest size keeps."""
    least = rules.min_pixels if job.video.min_pixels is None else job.video.min_pixels
    area = rules.factor**2
    for name, pixels in (
        ("total_pixels", job.video.total_pixels),
        ("max_tokens", None if job.video.max_tokens is None else job.video.max_tokens * area),
    ):
        if pixels is not None and pixels < least:
            return (
                f"video.{name}: found {getattr(job.video, name)}, which no frame of min_pixels "
                f"{least} keeps, expected at least "
                f"{least if name == 'total_pixels' else -(-least // area)}, or a smaller "
                "video.min_pixels"
            )
    return None


def _prompt_problem(processor: "Processor", texts: PromptTexts) -> str | None:
    for prompt in texts.prompts:
        try:
            processor.build_prompt(processor.user_message(prompt, [], texts.system))
        except PromptError as error:
            return f"prompt: found {_short(prompt)}, which no row can be asked: {error}"
    return None


def _short(text: str) -> str:
    shown = json.dumps(text, ensure_ascii=False)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."


def _ask_process(job: JobConfig, folder: str, texts: PromptTexts) -> str | None:
    request = {
        "job": job.model_dump_json(),
        "folder": folder,
        "prompts": list(texts.prompts),
        "system": texts.system,
    }
    command = [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"the checkpoint could not be checked: {root_cause(error)}") from error
    if done.returncode == 0:
        answer: str | None = json.loads(done.stdout)
        return answer
    if done.returncode < 0:
        raise RunError(
            "the process that checks the checkpoint was ended by signal "
            f"{-done.returncode}; the machine may lack memory"
        )
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return f"the model cannot be used with this installation: {lines[-1] if lines else 'no reason'}"
