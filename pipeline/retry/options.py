"""What a retry is asked to do."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mediamill.schemas.errors import JobError

# Keys that decide which rows there are, and where.
_FIXED = ("job", "manifest", "output", "partition_by", "rows_per_file", "media_column")
_TEXT, _NAME = re.compile(r"'[^']*'|\"[^\"]*\""), re.compile(r"[A-Za-z_]\w*")
_WORDS = ("and", "or", "not", "in", "is", "None", "null", "contains", "starts_with", "ends_with")


@dataclass(frozen=True)
class Retry:
    """Which error rows a run does again, and how.

    where: a condition on the result's rows; None = all that may succeed.
    only: whether the run does no other rows.
    also: a condition on rows that are done again too, ok rows among them.
    changed: job keys with other values than those of the output, by dotted key.
    """

    where: str | None = None
    only: bool = True
    also: str | None = None
    changed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.changed:
            if key in _FIXED or key.startswith("annotate."):
                raise JobError(
                    f"command line: {key}: found another value, expected that of the output: a "
                    "retry can change keys that decide the text, not the rows"
                )

    @property
    def changed_text(self) -> str | None:
        """The changed keys as a row of the result has them: "image.max_pixels=50176"."""
        pairs = (f"{key}={_text(value)}" for key, value in sorted(self.changed.items()))
        return ", ".join(pairs) or None

    @property
    def may_change_rows(self) -> bool:
        """Whether rows that failed may succeed by the changed keys."""
        return any(not key.startswith("resources.") for key in self.changed)

    def names_only(self, columns: Collection[str]) -> bool:
        """Returns whether the condition has no other names than these columns."""
        without_texts = _TEXT.sub("", self.where or "")
        return {*_NAME.findall(without_texts)} <= {*columns, *_WORDS}

    def changes_part(self, part: str) -> bool:
        """Returns whether a part of the fingerprint may differ from the output's."""
        keys = {*self.changed, *(key.partition(".")[0] for key in self.changed)}
        if part == "checkpoint":
            return "model" in keys
        if part == "seed":
            return bool(keys & {"seed", "generation"})
        return part in keys


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
