"""Turns what a request asks of generation, and the checkpoint's own defaults, into one rule.

The numbers only: how logits become tokens is in model/generation/filters.py and
model/generation/chooser.py.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
from mediamill.model.checkpoint.json_reader import is_number

__all__ = ["GenerationDefaults", "GenerationRule", "Sampling"]

_T = TypeVar("_T")

# Between these, logits divided by a temperature stay finite in float32.
_COLDEST, _HOTTEST = 1e-6, 1e30


@dataclass(frozen=True)
class Sampling:
    """How one request is generated. None means: as the checkpoint's generation_config.json says.

    max_new_tokens: tokens after which the answer is cut off.
    min_new_tokens: before so many tokens no end token is chosen; stop strings end an answer anyway.
    temperature: 0, the default, takes the likeliest token each time (a batch job has to give the
        same answers again); above 0 draws tokens; None draws if the file says do_sample, with the
        file's temperature. The repetition penalty and min_new_tokens hold in either case.
    top_k: draw among the k likeliest tokens, ties with the last included; 0 = among all.
    top_p: draw among the likeliest tokens that make up this probability; 1 = among all.
    min_p: leave out tokens less likely than this share of the likeliest one; 0 = none.
    repetition_penalty: above 1 makes tokens of prompt and answer less likely; 1 = none.
    eos_token_ids: the answer ends after any of them; () = none.
    stop: the answer ends when its text holds one of these; () = none.
    seed: the same seed gives the same answer, in any batch. 0 to 2^63 - 1.
    logprobs: report so many of the likeliest tokens for each token of the answer.
    json_schema: the text of a JSON schema; only tokens are chosen that lead to JSON that it allows,
        laid out as by json.dumps. The answer ends where nothing may follow, or by an end token
        where the JSON is whole; cut off by max_new_tokens or a stop string it is not. None = free.

    The published Instruct files say top_k 1 and top_p 0.001, and a file that says nothing means
    top_k 50 in the reference: a temperature alone changes little until top_k=0 and top_p=1.0 switch
    those filters off. Raises ValueError for a value outside its range.
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
        """The whole rule for a prompt of `prompt_tokens`, with the file's word where this is
        silent.
        """
        temperature = self.temperature
        if temperature is None:
            temperature = defaults.temperature if defaults.do_sample else 0.0
        if temperature > 0:
            temperature = min(max(temperature, _COLDEST), _HOTTEST)
        budget = self.max_new_tokens
        if budget is None:
            budget = defaults.max_new_tokens
        if budget is None and defaults.max_length is not None:
            budget = defaults.max_length - prompt_tokens
        return GenerationRule(
            max_new_tokens=20 if budget is None else budget,
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
        )


@dataclass(frozen=True)
class GenerationRule:
    """A `Sampling` with nothing left open. temperature 0 is greedy; max_new_tokens may be below 1
    where the file bounds prompt and answer together.
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

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn, rather than the likeliest taken."""
        return self.temperature > 0


def _or(wish: _T | None, default: _T) -> _T:
    return default if wish is None else wish


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
    good = is_number(value)
    if not good or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}, expected a number {words}")
