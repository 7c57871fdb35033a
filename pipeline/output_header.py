"""What binds an output from its first run on: the parts of its fingerprint, and its layout."""

import json
import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from mediamill.pipeline.retry.options import Retry
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig

_MAP_NAMES = re.compile(r" \('[^']*'\)(?=[,>])")  # map<string ('name'), int32 ('name')>


def layout(job: JobConfig, schema: pa.Schema) -> dict[str, Any]:
    """Returns the columns of the result with their types, and those that partition it."""
    columns = {field.name: _type_text(str(field.type)) for field in schema}
    return {"partition_by": list(job.partition_by), "columns": columns}


def check_bound(
    output: Place, header: Mapping[str, Any], bound: Mapping[str, Any], retry: Retry | None
) -> None:
    """Checks that the job has the fingerprint and layout of the output, which never change.

    The rows of a retry may have another fingerprint, by the keys that it changes.
    """
    shown = storage.redact(output.url)
    for kind in ("parts", "layout"):
        old, new = header[kind], bound[kind]
        if kind == "layout":  # older versions stored the names
            columns = {name: _type_text(text) for name, text in old.get("columns", {}).items()}
            old = {**old, "columns": columns} if columns else old
        for key in {**old, **new}:
            if kind == "parts" and retry is not None and retry.changes_part(key):
                continue
            if old.get(key) != new.get(key):
                raise JobError(
                    f"{shown}: the output was made with {key} = {_short(old.get(key))}, and the "
                    f"job has {_short(new.get(key))}: write to a new output folder, such as "
                    f"{shown}-{bound['fingerprint'][:8]}, or undo the change"
                )


def _type_text(text: str) -> str:
    """Returns the text of a type without the inner names of maps, which equal types may differ in.

    pyarrow shows such a name in the schema of a file, and not after that schema was stored.
    """
    return _MAP_NAMES.sub("", text)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
