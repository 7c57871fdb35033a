"""JSON schemas as columns: what fits them is kept exactly, and nothing that is said raises."""

import json
import math

import jsonschema
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.schemas.errors import JobError
from mediamill.schemas.json_schema import AnswerSchema


def whole(**properties):
    return {"type": "object", "properties": properties}


def types(schema):
    return {one.name: str(one.type) for one in AnswerSchema.of(schema).fields}


STRUCT = "struct<shape: string, big: bool>"
THING = {"type": "object", "properties": {"shape": {"enum": ["a"]}, "big": {"type": "boolean"}}}
TREE = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}
COLUMNS = [
    ({"type": "string"}, "string"),
    ({"enum": ["a", "b"]}, "string"),
    ({"enum": ["a", None]}, "string"),
    ({"const": 3}, "int64"),
    ({"enum": [1, 2.5]}, "double"),
    ({"type": "integer"}, "int64"),
    ({"type": ["integer", "null"]}, "int64"),
    ({"type": "number"}, "double"),
    ({"type": ["integer", "number"]}, "double"),
    ({"type": "boolean"}, "bool"),
    ({"type": "null"}, "string"),
    ({"type": ["integer", "string"]}, "string"),
    ({"enum": ["a", 1]}, "string"),
    ({}, "string"),
    (True, "string"),
    ({"type": "array", "items": {"type": "integer"}}, "list<item: int64>"),
    (
        {"type": "array", "items": {"type": "array", "items": {"enum": [True]}}},
        "list<item: list<item: bool>>",
    ),
    ({"type": "array", "items": {}}, "list<item: string>"),
    ({"type": "array"}, "string"),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, "string"),
    (THING, STRUCT),
    ({"type": "array", "items": THING}, f"list<item: {STRUCT}>"),
    ({**THING, "additionalProperties": {"type": "string"}}, "string"),
    ({**THING, "patternProperties": {"^x": {}}}, "string"),
    ({"type": "object"}, "string"),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string"),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "int64"),
    ({"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, "string"),
    ({"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/n"}]}, "int64"),
    ({"$ref": "#/$defs/n"}, "int64"),
    ({"$ref": "#/$defs/t"}, "string"),
    ({"type": "integer", "allOf": [{"minimum": 3}]}, "int64"),
]


@pytest.mark.parametrize(("schema", "column"), COLUMNS, ids=lambda value: "")
def test_a_property_has_the_column_of_its_values(schema, column):
    given = whole(a=schema) | {"$defs": {"n": {"type": "integer"}, "t": TREE}}
    assert types(given) == {"a": column}


def test_columns_stand_in_the_schemas_order():
    assert list(types(whole(z={}, a={}, m={}))) == ["z", "a", "m"]


REFUSED = [
    ([], "json_schema: found no mapping"),
    ({"type": "array"}, "json_schema: found no object with properties at its top"),
    ({"type": "object"}, "found no object with properties"),
    ({"properties": {"a": {}}}, "found no object with properties"),
    (whole(a={"type": "text"}), "json_schema.properties.a.type: is no JSON schema: 'text'"),
    (whole(a={"minLength": "x"}), "json_schema.properties.a.minLength: is no JSON schema"),
    (whole(a={"pattern": "("}), "json_schema.properties.a.pattern: is no JSON schema"),
    (whole(a={"$ref": "http://localhost/a"}), "json_schema.properties.a.$ref: found 'http://"),
    (whole(a={"$ref": "b.json"}), "nothing is fetched"),
    (whole(a={"$ref": "#/$defs/none"}), "expected a place in this schema"),
    (whole(a={"$ref": "#/properties/a"}), "json_schema.properties.a.$ref: leads in a circle"),
    (
        whole(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}},
        "leads in a circle",
    ),
    (whole(a={"$dynamicRef": "#x"}), "json_schema.properties.a.$dynamicRef: found it"),
    (whole(a={"$id": "http://localhost/"}), "json_schema.properties.a.$id: found it"),
    (whole(a={}) | {"$schema": "http://localhost/mine"}, "json_schema.$schema: found http://"),
    (whole(**{"": {}}), "json_schema.properties: found the name ''"),
    (whole(**{"a\nb": {}}), "found the name 'a\\nb'"),
    (whole(**{"a" * 101: {}}), "expected 1 to 100 printable characters"),
    (whole(a={"const": math.nan}), "json_schema: found what JSON cannot hold"),
    (whole(a={"const": object()}), "json_schema: found what JSON cannot hold"),
    (whole(a={"const": "\ud800"}), "json_schema: found what JSON cannot hold"),
    (whole(a={"const": "x" * 200_000}), "expected at most 100000"),
]


@pytest.mark.parametrize(("schema", "words"), REFUSED, ids=lambda value: "")
def test_what_is_no_schema_of_an_answer_is_refused(schema, words):
    with pytest.raises(JobError) as caught:
        AnswerSchema.of(schema)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_deep_and_circular_schemas_are_refused():
    deep: dict = {}
    for _ in range(100):
        deep = {"items": deep}
    with pytest.raises(JobError, match="more than 64 levels"):
        AnswerSchema.of(whole(a=deep))
    loop: dict = whole()
    loop["properties"]["a"] = loop
    with pytest.raises(JobError, match="cannot hold"):
        AnswerSchema.of(loop)


def test_messages_name_the_key():
    with pytest.raises(JobError, match=r"^prompts\.colour\.json_schema\.properties\.a\.type: "):
        AnswerSchema.of(whole(a={"type": 3}), "prompts.colour.json_schema")


def test_objects_have_no_properties_that_are_not_named():
    """No column would hold them."""
    schema = AnswerSchema.of(whole(a={"type": "array", "items": THING}))
    assert schema.parse('{"a": [{"shape": "a"}]}')[1] is None
    assert "unexpected" in schema.parse('{"a": [], "b": 1}')[1]
    assert "unexpected" in schema.parse('{"a": [{"c": 1}]}')[1]
    said = AnswerSchema.of({**whole(a={}), "additionalProperties": True})
    assert said.parse('{"a": 1, "b": 1}') == ({"a": "1"}, None)
    # Where several schemas describe one object, none of them knows all of its properties.
    both = {"allOf": [whole(b={}), whole(c={})]}
    assert AnswerSchema.of(whole(a=both)).parse('{"a": {"b": 1, "c": 2}}')[1] is None


FULL = AnswerSchema.of(
    whole(
        word={"type": "string"},
        count={"type": "integer"},
        big={"type": "integer", "minimum": -(10**30), "maximum": 10**30},
        share={"type": ["number", "null"]},
        sure={"type": "boolean"},
        any={},
        names={"type": "array", "items": {"type": "string"}},
        things={"type": "array", "items": THING},
    )
)


def test_values_are_kept_as_they_are():
    values, problem = FULL.parse(
        ' {"word": "\\u00e4 \\ud83d\\ude42\\u0000", "count": 3.0, "big": -9223372036854775808, '
        '"share": 2, "sure": false, "any": {"x": [1, "é", null]}, "names": ["a", ""], '
        '"things": [{"shape": "a"}, {}]} '
    )
    assert problem is None
    assert values == {
        "word": "ä 🙂\0",
        "count": 3,
        "big": -(2**63),
        "share": 2.0,
        "sure": False,
        "any": '{"x": [1, "é", null]}',
        "names": ["a", ""],
        "things": [{"shape": "a", "big": None}, {"shape": None, "big": None}],
    }
    assert type(values["count"]) is int
    assert type(values["share"]) is float


def test_what_is_not_there_is_null():
    assert FULL.parse("{}") == ({one.name: None for one in FULL.fields}, None)
    values, problem = FULL.parse('{"share": null, "any": null}')
    assert problem is None
    assert values["share"] is values["any"] is None


WRONG = [
    ("", "is no JSON"),
    ("a red circle", "is no JSON"),
    ('{"word": "a"', "is no JSON"),
    ('{"word": "a"} and more', "is no JSON: Extra data"),
    ('```json\n{"word": "a"}\n```', "is no JSON"),
    ('{"word": "a", "word": "b"}', "found the key 'word' twice"),
    ('{"any": {"b": 1, "b": 1}}', "found the key 'b' twice"),
    ('{"share": NaN}', "found NaN"),
    ('{"share": -Infinity}', "found -Infinity"),
    ('{"share": 1e999}', "beyond a double"),
    ('{"share": %s}' % ("9" * 400), "int too large"),
    ('{"any": %s}' % ("9" * 5000), "is no JSON"),
    ('{"big": 9223372036854775808}', "expected a number within 64 bits"),
    ('{"big": 1e25}', "expected a number within 64 bits"),
    ('{"count": 9007199254740992}', "$.count: 9007199254740992 is greater than the maximum"),
    ('{"count": true}', "$.count: True is not of type 'integer'"),
    ('{"count": 3.5}', "$.count: 3.5 is not of type 'integer'"),
    ('{"word": 3}', "$.word: 3 is not of type 'string'"),
    ('{"word": "\\ud800"}', "surrogates"),
    ('{"any": ["\\udc00"]}', "surrogates"),
    ('{"names": ["\\udc00x"]}', "surrogates"),
    ("[]", "$: [] is not of type 'object'"),
    ("[" * 200_000, "more than 64 levels"),
    ('{"any":' * 100 + "1" + "}" * 100, "more than 64 levels"),
    ('{"word": "' + "x" * 2_000_000 + '"}', "expected at most 1000000"),
    ('{"things": [{"shape": "b"}]}', "$.things[0].shape: 'b' is not one of ['a']"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=lambda value: "")
def test_what_does_not_fit_is_said(text, words):
    values, problem = FULL.parse(text)
    assert values == {}
    assert words in problem
    assert len(problem) < 500


def test_brackets_within_strings_are_not_levels():
    assert FULL.parse(json.dumps({"word": '[{"' * 300 + "\\"}))[1] is None


@given(st.text() | st.text(alphabet='{}[]":,\\u0123456789eE+-. truefalsn"word"', max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_text_raises(text):
    values, problem = FULL.parse(text)
    assert (problem is None) == bool(values)


LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": ["string", "null"]},
        {"enum": ["x", "y"]},
        {"enum": [1, "x"]},
        {},
    ]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda one: {"type": "array", "items": one}, inner)
        | st.builds(
            lambda one: {"type": "object", "properties": one},
            st.dictionaries(st.text("ab", min_size=1, max_size=2), inner, min_size=1, max_size=3),
        )
    ),
    max_leaves=6,
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)


def values_of(schema):
    """Values that a schema of `SCHEMAS` allows."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds = {
        "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "integer": st.integers(-(2**53) + 1, 2**53 - 1),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
        None: SCALARS.filter(lambda value: value != "\ud800"),
    }
    kind = schema.get("type")
    if kind == "array":
        return st.lists(values_of(schema["items"]), max_size=3)
    if kind == "object":
        parts = {name: values_of(one) for name, one in schema["properties"].items()}
        return st.fixed_dictionaries({}, optional=parts)
    return st.none() | kinds["string"] if isinstance(kind, list) else kinds[kind]


def stored(schema, value):
    """What a reader of the column should find, by another way than the code's."""
    kinds = {type(one) for one in schema["enum"]} if "enum" in schema else set()
    if schema == {} or len(kinds) > 1:
        return value if value is None else json.loads(json.dumps(value))
    if value is None:
        return None
    if schema.get("type") == "array":
        return [stored(schema["items"], one) for one in value]
    if schema.get("type") == "object":
        return {k: stored(one, value.get(k)) for k, one in schema["properties"].items()}
    return value


def read_back(schema, value):
    """A column's value, with what is kept as JSON text read again."""
    kinds = {type(one) for one in schema["enum"]} if "enum" in schema else set()
    if value is None:
        return None
    if schema == {} or len(kinds) > 1:
        return json.loads(value)
    if schema.get("type") == "array":
        return [read_back(schema["items"], one) for one in value]
    if schema.get("type") == "object":
        return {k: read_back(one, value[k]) for k, one in schema["properties"].items()}
    return value


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_what_fits_comes_back_from_its_column(data):
    """Random schemas, values that they allow, through Arrow and back."""
    schema = data.draw(SCHEMAS)
    value = data.draw(values_of(schema))
    answer = AnswerSchema.of(whole(a=schema))
    jsonschema.validate({"a": value}, json.loads(answer.text))
    values, problem = answer.parse(json.dumps({"a": value}))
    assert problem is None
    column = pa.array([values["a"]], answer.fields[0].type)
    column.validate(full=True)
    assert read_back(schema, column.to_pylist()[0]) == stored(schema, value)
