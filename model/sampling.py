"""The sampling parameters of a request, and their merge with the checkpoint's defaults.

See model/generation/chooser.py for how they are applied.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
from mediamill.model.checkpoint.json_reader import is_number

_T = TypeVar("_T")

# Within these limits, logits divided by the temperature stay finite in float32.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-6, 1e30


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of one request. None: as in the checkpoint's generation_config.json.

    max_new_tokens: the largest number of output tokens.
    min_new_tokens: no end token is chosen before; stop strings end the output anyway.
    temperature: 0, the default, is greedy, so that a batch job gives the same outputs again; above
        0 samples; None samples if the file has do_sample, at the file's temperature. The repetition
        penalty and min_new_tokens apply in either case.
    top_k: sample among the k likeliest tokens, ties with the last included; 0: among all.
    top_p: sample among the likeliest tokens that make up this probability; 1: among all.
    min_p: exclude tokens less likely than this share of the likeliest one; 0: none.
    repetition_penalty: above 1 makes tokens of prompt and output less likely; 1: none.
    eos_token_ids: the output ends after any of them; (): none.
    stop: the output ends when its text holds one of these strings; (): none.
    seed: the same seed gives the same output, in any batch. 0 to 2^63 - 1.
    logprobs: how many of the likeliest tokens to report for each output token.
    stop_loops: end an output that repeats the same tokens again and again (generation/loops.py).
    json_schema: the text of a JSON schema. Only tokens are chosen that lead to valid JSON, in the
        layout of json.dumps. The output ends where nothing may follow, or by an end token where the
        JSON is complete; max_new_tokens or a stop string may cut it off before. None: no schema.

    The published Instruct checkpoints set top_k 1 and top_p 0.001, and top_k is 50 in the reference
    if the file does not set it. So a temperature alone changes little, unless top_k=0 and top_p=1.0
    disable those filters. Raises ValueError for a value outside its range.
    """

    max_new_tokens: int | None = 128
    temperature: float | None = 0.0
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] | None = None
    min_new_tokens: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop: tuple[str, ...] | None = None
    seed: int = 0
    logprobs: int = 0
    json_schema: str | None = None
    stop_loops: bool = False

    def __post_init__(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 1)
        _whole("min_new_tokens", self.min_new_tokens, 0)
        _whole("top_k", self.top_k, 0)
        _whole("logprobs", self.logprobs, 0)
        _whole("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise ValueError(f"seed is {self.seed}, expected at most 2^63 - 1")
        _number("temperature", self.temperature, 0.0, math.inf, "at least 0")
        _number("top_p", self.top_p, 0.0, 1.0, "above 0 and at most 1", above=True)
        _number("min_p", self.min_p, 0.0, 1.0, "from 0 to 1")
        _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, "above 0", above=True)
        for token in self.eos_token_ids or ():
            _whole("a token of eos_token_ids", token, 0)
        if isinstance(self.stop, str):
            raise ValueError(f"stop is the string {self.stop!r}, expected a tuple of strings")
        for string in self.stop or ():
            if not isinstance(string, str) or not string:
                raise ValueError(f"stop holds {string!r}, expected strings that are not empty")
        if self.json_schema is not None and not isinstance(self.json_schema, str):
            raise ValueError(f"json_schema is {self.json_schema!r}, expected a text")
        low, high = self.min_new_tokens, self.max_new_tokens
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"min_new_tokens is {low} and max_new_tokens is {high}; expected min_new_tokens <= "
                "max_new_tokens"
            )

    def rule(self, defaults: GenerationDefaults, prompt_tokens: int) -> "GenerationRule":
        """Returns the rule for a prompt of so many tokens, with defaults in place of None."""
        temperature = self.temperature
        if temperature is None:
            temperature = defaults.temperature if defaults.do_sample else 0.0
        if temperature > 0:
            temperature = min(max(temperature, _MIN_TEMPERATURE), _MAX_TEMPERATURE)
        max_new_tokens = self.max_new_tokens
        if max_new_tokens is None:
            max_new_tokens = defaults.max_new_tokens
        if max_new_tokens is None and defaults.max_length is not None:
            max_new_tokens = defaults.max_length - prompt_tokens
        return GenerationRule(
            max_new_tokens=_or(max_new_tokens, 20),
            min_new_tokens=_or(self.min_new_tokens, defaults.min_new_tokens),
            temperature=temperature,
            top_k=_or(self.top_k, defaults.top_k),
            top_p=_or(self.top_p, defaults.top_p),
            min_p=_or(self.min_p, defaults.min_p),
            repetition_penalty=_or(self.repetition_penalty, defaults.repetition_penalty),
            eos_token_ids=_or(self.eos_token_ids, defaults.eos_token_ids),
            stop=_or(self.stop, defaults.stop),
            seed=self.seed,
            logprobs=self.logprobs,
            json_schema=self.json_schema,
            stop_loops=self.stop_loops,
        )


@dataclass(frozen=True)
class GenerationRule:
    """A `Sampling` in which every value is set.

    temperature: 0 is greedy. max_new_tokens: may be below 1 if the file limits prompt and output
    together.
    """

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    eos_token_ids: tuple[int, ...]
    stop: tuple[str, ...]
    seed: int
    logprobs: int
    json_schema: str | None = None
    stop_loops: bool = False

    @property
    def draws(self) -> bool:
        """Whether tokens are sampled, not greedy."""
        return self.temperature > 0


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _whole(name: str, value: object, low: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    if value is not None and value < low:
        raise ValueError(f"{name} is {value}, expected at least {low}")


def _number(
    name: str, value: object, low: float, high: float, words: str, above: bool = False
) -> None:
    if value is None:
        return
    if not is_number(value) or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}, expected a number {words}")
