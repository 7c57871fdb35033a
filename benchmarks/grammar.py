"""Measures the cost of constraining answers to a JSON schema: `python -m benchmarks.grammar`.

The vocabulary has the published size: 151,936 tokens, made of bytes, of random words, and of runs
of digits and blanks. Prints milliseconds of a step with 64 rows, each at another token of its
answer.
"""

import json
import random
import statistics
import time

import numpy as np
import tokenizers
import torch

from mediamill.model.generation.filters import apply_token_bitmask
from mediamill.model.generation.grammar import BitmaskFiller, Grammars
from mediamill.model.text.tokenizer import Tokenizer
from tests.model.json_schemas import closed, text

VOCABULARY, ROWS, THREADS = 151_936, 64, (1, 4)
SCHEMA = closed(
    caption={"type": "string", "maxLength": 200},
    colour={"enum": ["red", "green", "blue", "grey"]},
    tags={"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 8},
    people={
        "type": "array",
        "maxItems": 4,
        "items": closed(name={"type": "string"}, age={"type": "integer", "minimum": 0}),
    },
    share={"type": "number"},
)
ANSWER = {
    "caption": "A large red circle stands to the left of a small blue square on grey ground.",
    "colour": "red",
    "tags": ["circle", "square", "shapes on grey"],
    "people": [{"name": "Anna Müller", "age": 31}],
    "share": 0.93,
}


def vocabulary() -> Tokenizer:
    """Returns a byte-level vocabulary of the published size; words have one to four syllables."""
    rng = random.Random(0)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    syllables = [a + b + c for a in "bcdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "s")]
    found = dict.fromkeys(letters)
    found |= dict.fromkeys(['{"', '":', 'Ġ"', '",', '"]', "},", "Ġ{", "Ġ[", '["', '"}'])
    while len(found) < VOCABULARY - 300:
        word = "".join(rng.choice(syllables) for _ in range(rng.randint(1, 4)))
        found[rng.choice(("", "Ġ", "Ġ")) + (word.title() if rng.random() < 0.2 else word)] = None
    model = tokenizers.models.BPE({one: i for i, one in enumerate(found)}, [])
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    return Tokenizer(inner)


def main() -> None:
    tokenizer = vocabulary()
    start = time.perf_counter()
    grammars = Grammars(tokenizer, VOCABULARY)
    print(f"vocabulary of {VOCABULARY:,} tokens: {time.perf_counter() - start:.2f} s, once")
    start = time.perf_counter()
    grammars.matcher(text(SCHEMA))
    took = 1e3 * (time.perf_counter() - start)
    print(f"a schema of {len(text(SCHEMA))} characters: {took:.1f} ms")
    answer_ids = tokenizer.encode_exactly(json.dumps(ANSWER, ensure_ascii=False))
    for threads in THREADS:
        masks = BitmaskFiller(VOCABULARY, threads)
        for name in ("first", "later"):
            times = steps(grammars, masks, answer_ids)
            print(
                f"{ROWS} rows, {threads} threads, {name} answers: masks "
                f"{statistics.median(times):.2f} ms a step in the middle, {max(times):.1f} at most"
            )
    logits = torch.randn(ROWS, VOCABULARY)
    bits = torch.full((ROWS, masks.words), -1, dtype=torch.int32)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        apply_token_bitmask(logits, bits)
        times.append(1e3 * (time.perf_counter() - start))
    print(f"to apply them on this CPU: {statistics.median(times):.1f} ms a step")


def steps(grammars: Grammars, masks: BitmaskFiller, answer_ids: list[int]) -> list[float]:
    """Returns the milliseconds of each step. Adjacent rows are one token apart."""
    matchers = [grammars.matcher(text(SCHEMA)) for _ in range(ROWS)]
    bits = np.zeros((ROWS, masks.words), np.int32)
    times = []
    for step in range(len(answer_ids) + ROWS):
        now = [
            (m, step - row) for row, m in enumerate(matchers) if 0 <= step - row < len(answer_ids)
        ]
        start = time.perf_counter()
        masks.fill(bits[: len(now)], [one for one, _ in now], [()] * len(now))
        for matcher, at in now:
            matcher.advance(answer_ids[at])
            assert matcher.problem is None, matcher.problem
        times.append(1e3 * (time.perf_counter() - start))
    return times[ROWS : len(answer_ids)]


if __name__ == "__main__":
    main()
