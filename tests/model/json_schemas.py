"""JSON schemas of many kinds, for answers that are held to them."""

import json

WORD = {"type": "string", "maxLength": 6}


def closed(required=None, **properties):
    """An object with these properties alone; all of them required, or those named."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def text(schema):
    return json.dumps(schema)


SCHEMAS = {
    "enum": closed(colour={"enum": ["red", "rose", "green", "blue"]}),
    "enum of kinds": closed(a={"enum": ["x", 1, 2.5, None, True, [1, 2], {"k": "v"}]}),
    "one value": closed(a={"const": "only"}, b={"const": {"deep": [1, None]}}),
    "truth": closed(a={"type": "boolean"}, b={"type": "null"}),
    "whole number": closed(a={"type": "integer", "minimum": -5, "maximum": 120}),
    "open number": closed(a={"type": "integer", "minimum": 3}, b={"type": "number"}),
    "share": closed(a={"type": "number", "minimum": 0, "maximum": 1}),
    "beyond": closed(a={"type": "number", "exclusiveMinimum": -2, "exclusiveMaximum": 2}),
    "multiples": closed(a={"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 95}),
    "text": closed(a={"type": "string", "maxLength": 12}),
    "long enough": closed(a={"type": "string", "minLength": 3, "maxLength": 5}),
    "pattern": closed(a={"type": "string", "pattern": "^[a-c]{2,4}(-[0-9])?$"}),
    "part of a text": closed(a={"type": "string", "pattern": "x[0-9]", "maxLength": 40}),
    "letters": closed(a={"type": "string", "pattern": "^[äöü漢🙂]{1,3}$"}),
    "format": closed(a={"type": "string", "format": "date"}),
    "nullable": closed(a={"type": ["integer", "null"], "maximum": 9, "minimum": 0}),
    "any of": closed(a={"anyOf": [WORD, {"type": "boolean"}, {"type": "null"}]}),
    "one of": closed(a={"oneOf": [{"type": "boolean"}, {"const": 7}]}),
    "all of": closed(a={"allOf": [{"type": "integer"}, {"minimum": 1}, {"maximum": 4}]}),
    "list": closed(a={"type": "array", "items": {"type": "boolean"}, "maxItems": 3}),
    "at least two": closed(a={"type": "array", "items": WORD, "minItems": 2, "maxItems": 4}),
    "lists of lists": closed(
        a={
            "type": "array",
            "maxItems": 2,
            "items": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 2},
        }
    ),
    "box": closed(
        box={
            "type": "array",
            "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 99}] * 4,
            "items": False,
            "minItems": 4,
        }
    ),
    "optional": closed([], a=WORD, b={"type": "boolean"}, c={"enum": [1]}),
    "some optional": closed(["b"], a={"type": "boolean"}, b={"type": "boolean"}, c={"const": 1}),
    "nested": closed(
        who=closed(name=WORD, age={"type": "integer", "minimum": 0, "maximum": 130}),
        where=closed(x={"type": "boolean"}, deeper=closed(y={"const": "z"})),
    ),
    "objects in a list": closed(
        things={
            "type": "array",
            "minItems": 1,
            "maxItems": 3,
            "items": closed(["shape"], shape={"enum": ["circle", "star"]}, big={"type": "boolean"}),
        }
    ),
    "referred": closed(a={"$ref": "#/$defs/w"}, b={"$ref": "#/$defs/w"})
    | {"$defs": {"w": {"enum": ["yes", "no"]}}},
    "a tree": closed(tree={"$ref": "#/$defs/node"})
    | {
        "$defs": {
            "node": closed(
                leaf={"type": "boolean"},
                kids={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            )
        }
    },
    "odd names": closed(
        **{'say "hi"\\': {"type": "boolean"}, "e\u0301té 漢": WORD, "<|im_end|>": {"const": 1}}
    ),
}
