"""Conditions: which rows they choose, and what is said about wrong ones."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from mediamill.schemas.conditions import parse_condition
from mediamill.schemas.errors import JobError

TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "text": ["A cat", "a dog's life", None, 'say "hi"\n'],
        "status": ["ok", "ok", "error", "ok"],
        "width": pa.array([100, 512, None, 1024], pa.int32()),
        "height": pa.array([50, 512, None, 0], pa.int32()),
        "score": [0.5, -1.0, None, 2.0],
        "good": [True, False, None, True],
        "taken": pa.array([datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)] + [None]),
        "scene": [{"count": 1, "name": "x"}, {"count": 2, "name": None}, None, {"count": 3}],
        "tags": [["x"], [], None, ["x", "y"]],
        "odd name": [1, 2, 3, 4],
        "null": [None, "here", None, None],
        "kind": pa.array(["p", "q", None, "p"]).dictionary_encode(),
        "nothing": pa.nulls(4),
        "image": pa.array([b"1", b"2", b"3", b"4"]),
    }
)

CHOSEN = [
    ('status == "ok"', "abd"),
    ("status == 'ok'", "abd"),
    ('status != "ok"', "c"),
    ('"ok" == status', "abd"),
    ("width >= 512", "bd"),
    ("width > 512", "d"),
    ("width < 512", "a"),
    ("width <= 512.0", "ab"),
    ("100 < width < 2000", "bd"),
    ("width == 512 or width == 100", "ab"),
    ("width == 512 and height == 512", "b"),
    ("not width == 512", "ad"),
    ("not (width == 512 or text == None)", "ad"),
    ("text == None", "c"),
    ("None == text", "c"),
    ("text is None", "c"),
    ("text is not None", "abd"),
    ("text != None", "abd"),
    ("text == null", ""),  # the column of that name is null where the text is
    ("width == none", "c"),
    ("`null` == 'here'", "b"),
    ("`odd name` > 2", "cd"),
    ("`odd name` == 2 and status == 'ok'", "b"),
    ("id in ['a', 'c']", "ac"),
    ("id in ('a',)", "a"),
    ("id not in ['a', 'c']", "bd"),
    ("width in [100, 1024]", "ad"),
    ("width in [100, None]", "ac"),
    ("width not in [100]", "bd"),
    ("good", "ad"),
    ("not good", "b"),
    ("good == True", "ad"),
    ("good == false", "b"),
    ('contains(text, "cat")', "a"),
    ('contains(lower(text), "a")', "abd"),
    ('starts_with(text, "a ")', "b"),
    (r'ends_with(text, "\n")', "d"),
    ("contains(text, 'dog\\'s')", "b"),
    ("contains(text, '`')", ""),
    (r'matches(text, "^[Aa] \\w+$")', "a"),
    ("upper(id) == 'A'", "a"),
    ("length(text) > 5", "bd"),
    ("length(tags) == 0", "b"),
    ("width * height > 5000", "b"),
    ("width / height >= 2", "ad"),
    ("width + 1 == 513", "b"),
    ("-width < -600", "d"),
    ("score > -0.5", "ad"),
    ("score == -1", "b"),
    ("taken >= '2026-01-02'", "bc"),
    ("taken in ['2026-01-01']", "a"),
    ("scene.count >= 2", "bd"),
    ("scene.name == None", "bcd"),
    ("scene == None", "c"),
    ("kind == 'p'", "ad"),
    ("nothing == None", "abcd"),
    ("width >= 512\n  and status == 'ok'", "bd"),
    ("  width == 512  ", "b"),
]


@pytest.mark.parametrize(("text", "ids"), CHOSEN)
def test_a_condition_chooses_rows(text, ids):
    chosen = TABLE.filter(parse_condition(text, TABLE.schema))
    assert "".join(chosen["id"].to_pylist()) == ids


def test_a_long_list_of_values():
    text = f"width in {list(range(600, 1600))}"
    assert TABLE.filter(parse_condition(text, TABLE.schema))["id"].to_pylist() == ["d"]


WRONG = [
    ("", "found nothing"),
    ("   ", "found nothing"),
    ("statsu == 'ok'", "did you mean 'status'?"),
    ("scene.cuont == 1", "did you mean 'count'?"),
    ("width.x == 1", "has no fields"),
    ("zzzzzz == 1", "expected one of id, text"),
    ("width = 512", "expected =="),
    ("width == 512 AND good", "in small letters"),
    ("width == 512 && good", "in small letters"),
    ("width ==", "cannot be read"),
    ("width", "a number value as a whole"),
    ("text", "a text value as a whole"),
    ("width == 'a'", "two values of one kind"),
    ("text > 5", "two values of one kind"),
    ("text and good", "expected a test"),
    ("not width", "expected a test"),
    ("text + 'x' == 'y'", "between two numbers"),
    ("width % 2 == 0", "expected +, -, * or /"),
    ("width ** 9999999 > 1", "expected +, -, * or /"),
    ("'a' in text", 'contains(text, "x")'),
    ("id in []", "expected a list"),
    ("id in [1]", "expected values of one kind"),
    ("id in [text]", "expected plain values"),
    ("width < None", "expected == or !="),
    ("width is 5", "before None only"),
    ("contain(text, 'x')", "did you mean 'contains'?"),
    ("contains(text)", "with 2 values"),
    ("contains(width, 'x')", "expected a text"),
    ("contains(text, id)", "expected a plain text"),
    ("contains(text, pattern='x')", "with 2 values"),
    ("matches(text, '(')", "not a regular expression"),
    ("length(width) == 1", "expected a text"),
    ("taken > 'yesterday'", "expected a time"),
    ("tags == 'x'", "two values of one kind"),
    ("image == 'x'", "two values of one kind"),
    ("__import__('os').system('true')", "unknown function"),
    ("(lambda: 1)()", "unknown function"),
    ("[x for x in id] == 1", "expected a column"),
    ("text[0] == 'A'", "expected a column"),
    ("f'{text}' == 'a'", "expected a column"),
    ("text == b'A'", "expected a text, number"),
    ("width == 1j", "expected a text, number"),
    ("width == 99999999999999999999999", "no column can hold"),
    (r"text == '\ud800'", "no column can hold"),
    ("text == 'a\0b'", "NUL"),
    ("(" * 300 + "width" + ")" * 300 + " == 1", "cannot be read"),
    ("not " * 150 + "good", "less nesting"),
    ("width == 1; good", "cannot be read"),
    ("x := 5", "cannot be read"),
    ("`odd name == 1", "cannot be read"),
    ("good if good else good", "expected a column"),
    ("a" * 20_000, "at most"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_condition_is_a_sentence(text, message):
    with pytest.raises(JobError, match="condition ") as error:
        TABLE.filter(parse_condition(text, TABLE.schema))
    assert message in str(error.value)
    assert len(str(error.value)) < 2000
    assert "\n" not in str(error.value)
