"""Parses a condition on rows, like `status == "ok" and width >= 512`, to an Arrow expression.

The grammar is a small part of Python's, read as a syntax tree and never evaluated:

    and or not      == != < <= > >=      in, not in [..]      == None, != None      + - * /
    contains(text, "x")  starts_with(text, "x")  ends_with(text, "x")  matches(text, "regex")
    lower(text)  upper(text)  length(text or list)

A name is a column, `record.field` a field of a struct, and a name with odd letters stands between
backticks. Nulls behave as in SQL: a comparison with a null is not true, so the row is left out.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mediamill.schemas.errors import JobError
from mediamill.schemas.nearest import nearest

_MAX_LETTERS, _MAX_DEPTH = 10_000, 100
_QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|`([^`]*)`""", re.DOTALL)
_ALIAS = "_quoted_{}_"  # stands for a name between backticks while Python's parser works
_WORDS = {"null": None, "none": None, "true": True, "false": False}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_ARITHMETIC: dict[type[ast.operator], str] = dict(
    zip((ast.Add, ast.Sub, ast.Mult, ast.Div), ("add", "subtract", "multiply", "divide"))  # noqa: B905
)
_LITERALS = {str: "text", int: "number", float: "number", bool: "boolean", type(None): "null"}
_TEXT_TESTS = {
    "contains": "match_substring",
    "starts_with": "starts_with",
    "ends_with": "ends_with",
    "matches": "match_substring_regex",
}
_TEXT_CHANGES = {"lower": "utf8_lower", "upper": "utf8_upper"}
_FUNCTIONS = (*_TEXT_TESTS, *_TEXT_CHANGES, "length")


@dataclass(frozen=True)
class _Value:
    """A part of the condition. kind: text, number, boolean, time, list, struct, null or other.

    constant: whether it is a literal, whose value is then `literal`.
    """

    expression: Any
    kind: str
    type: pa.DataType
    constant: bool = False
    literal: object = None


def parse_condition(text: str, schema: pa.Schema) -> pc.Expression:
    """Returns the condition as an expression on tables that have the schema's columns.

    Raises JobError with what was found and what is expected.
    """
    return _Parser(text, schema).parse()


class _Parser:
    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text, self._schema = text, schema
        self._names: dict[str, str] = {}

    def parse(self) -> pc.Expression:
        if not self._text.strip():
            raise self._error("found nothing, expected a condition")
        if len(self._text) > _MAX_LETTERS:
            raise self._error(f"expected at most {_MAX_LETTERS} letters")
        if "\0" in self._text:
            raise self._error("found a NUL character")
        source = _QUOTED.sub(self._unquoted, self._text).replace("\n", " ").strip()
        try:
            tree = ast.parse(source, mode="eval")
            value = self._value(tree.body, 0)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, JobError):
                raise
            raise self._error(self._syntax(error)) from None
        if value.kind != "boolean":
            raise self._error(f"found a {value.kind} value as a whole, expected a comparison")
        return value.expression

    def _unquoted(self, match: re.Match[str]) -> str:
        if match[2] is None:
            return match[0]
        alias = _ALIAS.format(len(self._names))
        self._names[alias] = match[2]
        return alias

    def _syntax(self, error: Exception) -> str:
        hint = 'a condition such as status == "ok" and width >= 512'
        if re.search(r"(?<![=!<>])=(?!=)", self._text):
            hint = "== where it compares two values"
        elif re.search(r"\b(?:AND|OR|NOT|IN|IS)\b|&&|\|\|", self._text):
            hint = "and, or, not, in and is in small letters"
        elif isinstance(error, RecursionError | MemoryError):
            hint = "less nesting"
        return f"cannot be read, expected {hint}"

    def _value(self, node: ast.expr, depth: int) -> _Value:
        if depth > _MAX_DEPTH:
            raise self._error("found too many parentheses, expected less nesting")
        match node:
            case ast.BoolOp():
                parts = [self._boolean(part, depth) for part in node.values]
                name = "and_kleene" if isinstance(node.op, ast.And) else "or_kleene"
                whole = parts[0]
                for part in parts[1:]:
                    whole = _call(name, whole, part)
                return _Value(whole, "boolean", pa.bool_())
            case ast.UnaryOp(op=ast.Not()):
                operand = self._boolean(node.operand, depth)
                return _Value(_call("invert", operand), "boolean", pa.bool_())
            case ast.UnaryOp(op=ast.USub()):
                return self._negative(node, depth)
            case ast.Compare():
                return self._comparison(node, depth)
            case ast.BinOp():
                return self._arithmetic(node, depth)
            case ast.Name() | ast.Attribute():
                return self._column(node)
            case ast.Constant():
                return self._literal(node.value)
            case ast.Call():
                return self._function(node, depth)
        raise self._error(f"found {self._shown(node)}, expected a column, a value or a comparison")

    def _boolean(self, node: ast.expr, depth: int) -> Any:
        value = self._value(node, depth + 1)
        if value.kind != "boolean":
            raise self._error(f"found {self._shown(node)}, a {value.kind} value, expected a test")
        return value.expression

    def _negative(self, node: ast.UnaryOp, depth: int) -> _Value:
        value = self._value(node.operand, depth + 1)
        if value.kind != "number":
            raise self._error(f"found '-' before a {value.kind} value, expected a number")
        if isinstance(value.literal, int | float):
            return self._literal(-value.literal)
        return _Value(_call("negate", value.expression), "number", value.type)

    def _comparison(self, node: ast.Compare, depth: int) -> _Value:
        left_node, whole = node.left, None
        for operator, right_node in zip(node.ops, node.comparators, strict=True):
            part = self._compared(left_node, operator, right_node, depth)
            whole = part if whole is None else _call("and_kleene", whole, part)
            left_node = right_node
        return _Value(whole, "boolean", pa.bool_())

    def _compared(
        self, left_node: ast.expr, operator: ast.cmpop, right_node: ast.expr, depth: int
    ) -> Any:
        left = self._value(left_node, depth + 1)
        if isinstance(operator, ast.In | ast.NotIn):
            inside = self._member(left, left_node, right_node, depth)
            return inside if isinstance(operator, ast.In) else _call("invert", inside)
        right = self._value(right_node, depth + 1)
        if "null" in (left.kind, right.kind):
            other = right if left.kind == "null" else left
            is_null = _call("is_null", other.expression)
            if isinstance(operator, ast.Eq | ast.Is):
                return is_null
            if isinstance(operator, ast.NotEq | ast.IsNot):
                return _call("invert", is_null)
            raise self._error(f"found None in '{self._shown(left_node)} < ...', expected == or !=")
        name = _COMPARISONS.get(type(operator))
        if name is None:
            raise self._error("found 'is', expected it before None only; == compares values")
        left, right = self._alike(left, right), self._alike(right, left)
        if left.kind != right.kind or left.kind in ("list", "struct", "other"):
            raise self._error(
                f"found {self._shown(left_node)} ({left.kind}) compared with "
                f"{self._shown(right_node)} ({right.kind}), expected two values of one kind"
            )
        return _call(name, left.expression, right.expression)

    def _member(self, left: _Value, left_node: ast.expr, node: ast.expr, depth: int) -> Any:
        if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
            raise self._error(
                f"found {self._shown(node)} after 'in', expected a list of values such as "
                '["a", "b"]; contains(text, "x") looks for a part of a text'
            )
        values = [self._alike(self._value(one, depth + 1), left) for one in node.elts]
        if not all(value.constant for value in values):
            raise self._error("found a column in the list after 'in', expected plain values")
        wrong = next((value for value in values if value.kind not in (left.kind, "null")), None)
        if wrong is not None or left.kind in ("list", "struct", "other", "null"):
            raise self._error(
                f"found {self._shown(left_node)} ({left.kind}) in a list with a "
                f"{wrong.kind if wrong else left.kind} value, expected values of one kind"
            )
        known = [value for value in values if value.kind != "null"]
        tests = [_call("equal", left.expression, value.expression) for value in known]
        tests += [_call("is_null", left.expression)] if len(known) < len(values) else []
        # A balanced tree: a long list must not nest as deep as it is long.
        while len(tests) > 1:
            pairs = [tests[i : i + 2] for i in range(0, len(tests), 2)]
            tests = [_call("or_kleene", *pair) if len(pair) == 2 else pair[0] for pair in pairs]
        return tests[0]

    def _alike(self, value: _Value, other: _Value) -> _Value:
        """Returns a text literal as a time where it is compared with one."""
        if not value.constant or value.kind != "text" or other.kind != "time":
            return value
        try:
            if pa.types.is_timestamp(other.type):
                time = datetime.fromisoformat(str(value.literal))
                if other.type.tz is not None and time.tzinfo is None:
                    time = time.replace(tzinfo=UTC)
                scalar = pa.scalar(time, other.type)
            else:
                scalar = pa.scalar(value.literal).cast(other.type)
        except (ValueError, TypeError, pa.ArrowException):
            raise self._error(
                f"found '{value.literal}', expected a time such as \"2026-01-31\""
            ) from None
        return _Value(pc.scalar(scalar), "time", other.type, True, value.literal)

    def _arithmetic(self, node: ast.BinOp, depth: int) -> _Value:
        name = _ARITHMETIC.get(type(node.op))
        left, right = self._value(node.left, depth + 1), self._value(node.right, depth + 1)
        if name is None or left.kind != "number" or right.kind != "number":
            raise self._error(
                f"found {self._shown(node)} ({left.kind}, {right.kind}), expected +, -, * or / "
                "between two numbers"
            )
        sides = [left.expression, right.expression]
        if name == "divide":  # of whole numbers, Arrow would round, and fail at zero
            sides = [side.cast(pa.float64()) for side in sides]
        return _Value(_call(name, *sides), "number", pa.float64())

    def _column(self, node: ast.expr) -> _Value:
        path: list[str] = []
        while isinstance(node, ast.Attribute):
            path.insert(0, self._names.get(node.attr, node.attr))
            node = node.value
        if not isinstance(node, ast.Name):
            raise self._error(f"found {self._shown(node)} before a dot, expected a column")
        name = self._names.get(node.id, node.id)
        if name not in self._schema.names:
            if not path and name.lower() in _WORDS and node.id not in self._names:
                return self._literal(_WORDS[name.lower()])
            raise self._unknown("column", name, self._schema.names)
        if self._schema.names.count(name) > 1:
            raise self._error(f"found two columns named '{name}', expected one")
        kind = self._schema.field(name).type
        for depth, field in enumerate(path):
            shown = ".".join([name, *path[:depth]])
            if not pa.types.is_struct(kind):
                raise self._error(f"found '{shown}.{field}', but '{shown}' has no fields ({kind})")
            names = [kind.field(i).name for i in range(kind.num_fields)]
            if field not in names:
                raise self._unknown(f"field of '{shown}'", field, names)
            kind = kind.field(field).type
        expression = pc.field(name, *path) if path else pc.field(name)
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            expression = expression.cast(kind)
        return _Value(expression, _kind(kind), kind)

    def _literal(self, value: object) -> _Value:
        kind = _LITERALS.get(type(value))
        if kind is None:
            raise self._error(f"found {value!r}, expected a text, number, True, False or None")
        try:
            scalar = pa.scalar(value)
        except (pa.ArrowException, UnicodeError, OverflowError):
            raise self._error(f"found {str(value)[:40]!a}, which no column can hold") from None
        return _Value(pc.scalar(scalar), kind, scalar.type, True, value)

    def _function(self, node: ast.Call, depth: int) -> _Value:
        name = node.func.id if isinstance(node.func, ast.Name) else self._shown(node.func)
        if name not in _FUNCTIONS:
            raise self._unknown("function", name, _FUNCTIONS)
        count = 2 if name in _TEXT_TESTS else 1
        if len(node.args) != count or node.keywords:
            raise self._error(f"found {self._shown(node)}, expected {name} with {count} values")
        first = self._value(node.args[0], depth + 1)
        if name == "length" and first.kind == "list":
            return _Value(_call("list_value_length", first.expression), "number", pa.int64())
        if first.kind != "text":
            raise self._error(f"found {self._shown(node)} of a {first.kind} value, expected a text")
        if name == "length":
            return _Value(_call("utf8_length", first.expression), "number", pa.int64())
        if name in _TEXT_CHANGES:
            return _Value(_call(_TEXT_CHANGES[name], first.expression), "text", first.type)
        second = self._value(node.args[1], depth + 1)
        if not second.constant or second.kind != "text":
            raise self._error(f"found {self._shown(node)}, expected a plain text as second value")
        function: Callable[..., Any] = getattr(pc, _TEXT_TESTS[name])
        if name == "matches":
            try:
                function(pa.array([""]), pattern=second.literal)
            except pa.ArrowInvalid:
                raise self._error(f"'{second.literal}' is not a regular expression") from None
        return _Value(function(first.expression, pattern=second.literal), "boolean", pa.bool_())

    def _shown(self, node: ast.AST) -> str:
        try:
            text = ast.unparse(node)
        except (ValueError, RecursionError):
            text = type(node).__name__
        for alias, name in self._names.items():
            text = text.replace(alias, f"`{name}`")
        return f"'{text[:80]}'"

    def _unknown(self, what: str, name: str, known: Any) -> JobError:
        guess = nearest(name, known)
        hint = f"did you mean '{guess}'?" if guess else f"expected one of {', '.join(known)}"
        return self._error(f"unknown {what} '{name[:80]}', {hint[:500]}")

    def _error(self, message: str) -> JobError:
        return JobError(f"condition {self._text[:200]!a}: {message}")


def _call(name: str, *arguments: Any) -> Any:
    return getattr(pc, name)(*arguments)


def _kind(data_type: pa.DataType) -> str:
    types = pa.types
    for kind, *tests in (
        ("text", types.is_string, types.is_large_string),
        ("boolean", types.is_boolean),
        ("number", types.is_integer, types.is_floating, types.is_decimal),
        ("time", types.is_temporal),
        ("list", types.is_list, types.is_large_list, types.is_fixed_size_list),
        ("struct", types.is_struct),
        ("null", types.is_null),
    ):
        if any(test(data_type) for test in tests):
            return kind
    return "other"
