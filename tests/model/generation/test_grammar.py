"""A token may come next if and only if the answer can still become what the schema allows."""

import itertools
import json
import random

import jsonschema
import numpy as np
import pytest

from mediamill.model.generation import grammar
from mediamill.model.generation.grammar import BitmaskFiller, Grammars, schema_problem
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.model.tiny import CHECKPOINT
from tests.model.json_schemas import SCHEMAS, closed, text

VOCABULARY = 523  # more logits than the tokenizer has tokens
END = 508


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(CHECKPOINT)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, VOCABULARY)


def allowed(matchers, ends=((END,),), threads=1):
    """The ids that may come next, for each matcher."""
    masks = BitmaskFiller(VOCABULARY, threads)
    bits = np.zeros((len(matchers), masks.words), np.int32)
    masks.fill(bits, matchers, list(ends) * (len(matchers) if len(ends) == 1 else 1))
    unpacked = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
    return [set(np.flatnonzero(row[:VOCABULARY]).tolist()) for row in unpacked]


def finite(schema, values):
    """All texts of objects whose properties have some of these values, and that validate."""
    names = list(schema["properties"])
    texts = []
    for chosen in itertools.product(*([..., *values[name]] for name in names)):
        value_of = {
            name: value for name, value in zip(names, chosen, strict=True) if value is not ...
        }
        if jsonschema.Draft202012Validator(schema).is_valid(value_of):
            texts.append(json.dumps(value_of, ensure_ascii=False).encode())
    return texts


LISTS = [list(values) for n in range(4) for values in itertools.product([True, False], repeat=n)]
FINITE = [
    (SCHEMAS["enum"], {"colour": ["red", "rose", "green", "blue", "r", "redd"]}),
    (SCHEMAS["nullable"], {"a": [*range(-2, 12), None]}),
    (closed(a={"type": "integer", "minimum": 7, "maximum": 1203}), {"a": [*range(-30, 1300)]}),
    (closed(a={"type": "integer", "minimum": -31, "maximum": -3}), {"a": [*range(-40, 40)]}),
    (SCHEMAS["multiples"], {"a": [*range(-10, 120)]}),
    (SCHEMAS["list"], {"a": [*LISTS, [True] * 4]}),
    (SCHEMAS["some optional"], {"a": [True, False], "b": [True, False], "c": [1, 2]}),
    (SCHEMAS["referred"], {"a": ["yes", "no", "y"], "b": ["yes", "no", "nono"]}),
    (
        SCHEMAS["letters"],
        {"a": ["".join(s) for n in range(5) for s in itertools.product("äöü漢🙂", repeat=n)]},
    ),
]


@pytest.mark.parametrize(("schema", "values"), FINITE, ids=lambda value: "")
def test_allowed_is_what_some_answer_goes_on_with(tokenizer, grammars, schema, values):
    """Against the list of all answers. Where the text is fixed the library takes the tokenizer's
    own tokens of it, so that one token is allowed there of several that would do.
    """
    answers = finite(schema, values)
    assert len(answers) >= 4
    pieces = [tokenizer.token_bytes(token) for token in range(VOCABULARY)]
    words = set(range(VOCABULARY)) - set(tokenizer.special.values())
    rng = random.Random(1)
    open_choices = 0
    for _ in range(25):
        matcher, output = grammars.matcher(text(schema)), b""
        while True:
            [ids] = allowed([matcher])
            rest = [answer[len(output) :] for answer in answers if answer.startswith(output)]
            prefixes = {answer[:size] for answer in rest for size in range(1, len(answer) + 1)}
            right = {token for token in words if pieces[token] in prefixes}
            right |= {END} if b"" in rest else set()
            assert ids
            assert ids <= right
            if len(ids) > 1:
                assert ids == right
                open_choices += 1
            token = rng.choice(sorted(ids))
            matcher.advance(token)
            output += pieces[token]
            assert matcher.problem is None
            assert matcher.complete == (output in answers), output
            if matcher.complete:
                break
    assert open_choices >= 25


@pytest.mark.parametrize(("schema", "values"), FINITE, ids=lambda value: "")
def test_every_answer_can_be_said_in_the_tokenizers_own_tokens(tokenizer, grammars, schema, values):
    for answer in finite(schema, values)[:60]:
        matcher = grammars.matcher(text(schema))
        for token in tokenizer.encode_exactly(answer.decode()):
            assert token in allowed([matcher])[0], answer
            matcher.advance(token)
        assert matcher.complete


@pytest.mark.parametrize("name", SCHEMAS)
def test_walks_at_random_end_in_valid_text(tokenizer, grammars, name):
    """Whatever is drawn among the allowed tokens: whole letters, no control token, valid JSON."""
    rng = random.Random(name)
    control = set(tokenizer.special.values())
    ended = 0
    for _ in range(12):
        matcher, output = grammars.matcher(text(SCHEMAS[name])), []
        while not matcher.complete and len(output) < 150:
            [ids] = allowed([matcher])
            assert not ids & (control - {END})
            assert max(ids) < 520
            output.append(rng.choice(sorted(ids)))
            matcher.advance(output[-1])
            assert matcher.problem is None
        if matcher.complete:
            ended += 1
            whole = b"".join(tokenizer.token_bytes(token) for token in output).decode()
            assert whole == tokenizer.decode(output)
            value = json.loads(whole)
            jsonschema.validate(value, SCHEMAS[name])
            assert not set(allowed([matcher])[0]) - {END}
    assert ended >= 1


def test_what_is_not_allowed_is_a_problem_and_stays_one(grammars):
    matcher = grammars.matcher(text(SCHEMAS["enum"]))
    matcher.advance(3)
    assert "doesn't satisfy the grammar" in matcher.problem
    assert "\n" not in matcher.problem
    assert not matcher.complete
    matcher.advance(90)
    assert matcher.problem


def test_end_tokens_are_allowed_where_the_json_is_whole(tokenizer, grammars):
    """A number at the top is whole at each digit, and may go on."""
    matcher = grammars.matcher(text({"type": "integer", "minimum": 0}))
    assert not {506, END} & allowed([matcher], [(END, 506)])[0]
    matcher.advance(16)  # 1
    [ids] = allowed([matcher], [(END, 506)])
    assert {506, END} < ids
    assert END not in allowed([matcher], [()])[0]
    assert not matcher.complete


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_have_masks_of_their_own(grammars, threads):
    """Many rows at once, some without a grammar, equal each row alone."""
    names = [name for _ in range(3) for name in SCHEMAS]
    matchers = [grammars.matcher(text(SCHEMAS[name])) for name in names]
    for step, matcher in enumerate(matchers):
        rng = random.Random(step)
        for _ in range(step % 40):
            if not matcher.complete:
                matcher.advance(rng.choice(sorted(allowed([matcher])[0])))
    mixed = [None if row % 7 == 3 else matcher for row, matcher in enumerate(matchers)]
    together = allowed(mixed, threads=threads)
    for matcher, ids in zip(mixed, together, strict=True):
        assert ids == (set(range(VOCABULARY)) if matcher is None else allowed([matcher])[0])


def test_a_lexer_begun_anew_says_the_same(tokenizer, monkeypatch):
    monkeypatch.setattr(grammar, "_MAX_OUTPUTS", 2)
    fresh = Grammars(tokenizer, VOCABULARY)
    schema = text(SCHEMAS["nested"])
    walks = set()
    for _ in range(7):
        matcher, walk, rng = fresh.matcher(schema), [], random.Random(3)
        while not matcher.complete and len(walk) < 150:
            walk.append(rng.choice(sorted(allowed([matcher])[0])))
            matcher.advance(walk[-1])
        walks.add(tuple(walk))
    assert len(walks) == 1


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (closed(a={"not": {"const": 1}}), 'Unimplemented keys: ["not"]'),
        (closed(a={"type": "array", "uniqueItems": True}), "uniqueItems"),
        (closed(a={"type": "string", "format": "no such"}), "Unknown format: no such"),
        (closed(a={"oneOf": [{"minimum": 1}, {"maximum": 3}]}), "oneOf"),
        (closed(a={"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (closed(a={"$ref": "http://localhost/x"}), "localhost"),
        ([], "expected an object"),
    ],
)
def test_what_the_library_cannot_do_is_said(grammars, schema, words):
    problem = schema_problem(text(schema))
    assert words in problem
    assert "\n" not in problem
    with pytest.raises(ValueError, match=r"."):
        grammars.matcher(text(schema))


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_it_can_do_has_no_problem(name):
    assert schema_problem(text(SCHEMAS[name])) is None


def test_a_schema_cannot_loosen_its_own_layout(tokenizer, grammars):
    """The library reads options from schemas; those here have none to give."""
    schema = closed(a={"const": 1}) | {"x-guidance": {"whitespace_flexible": True, "lenient": True}}
    matcher = grammars.matcher(text(schema))
    output = []
    while not matcher.complete:
        [ids] = allowed([matcher])
        assert len(ids) == 1
        output += ids
        matcher.advance(output[-1])
    assert tokenizer.decode(output) == '{"a": 1}'
