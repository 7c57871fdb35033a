"""Converts Arrow rows to text formats, and row ids to names of files."""

import base64
import datetime
import decimal
import hashlib
import json
import math
import re
from typing import Any

import pyarrow as pa

_NAME = re.compile(r"[a-z0-9_][a-z0-9_-]{0,79}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])")  # of Windows


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Returns the rows as Python values. Bytes in a text column that are not UTF-8 become U+FFFD.

    Column names may not be equal.
    """
    try:
        return list(table.to_pylist())
    except UnicodeDecodeError:
        names = [field.name for field in table.schema if pa.types.is_string(field.type)]
        for name in names:
            number = table.column_names.index(name)
            texts = [
                None if one is None else one.decode(errors="replace")
                for one in table[name].cast(pa.binary()).to_pylist()
            ]
            table = table.set_column(number, name, pa.array(texts, pa.string()))
        return list(table.to_pylist())


def to_json(value: object) -> str:
    """Returns strict JSON: no NaN (null instead), times in ISO 8601, bytes in base64."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)


def to_csv_field(value: object, alone: bool = False) -> str:
    """Returns one field of a CSV line. A null is nothing, an empty text is quoted.

    Lists and structs are JSON. alone: whether the line has no other field, since readers skip
    empty lines.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return '""' if alone else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = value if isinstance(value, str) else _text(value)
    if not text or text != text.strip() or any(letter in text for letter in ',"\n\r\0#'):
        return '"' + text.replace('"', '""') + '"'
    return text


def file_key(row_id: object) -> str:
    """Returns a name for the row's files: legal everywhere, without dots, equal for no two ids.

    An id of small letters, digits, - and _ is its own name; others get a hash at their end.
    """
    text = str(row_id)
    if _NAME.fullmatch(text) and not _RESERVED.fullmatch(text) and not _HASHED.search(text):
        return text
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:60].lstrip("-") or "row"
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return f"{plain}-{digest}"


_HASHED = re.compile(r"-[0-9a-f]{16}$")  # looks like a name that was made of another id


def _text(value: object) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _plain(value: object) -> object:
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return base64.b64encode(value).decode()
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal():
            return str(value)
    return value
