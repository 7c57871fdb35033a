"""Remembers samples in the machine's cache, so that a second forecast of a job is quick."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mediamill.pipeline.forecast.engine_run import EngineTotals
from mediamill.pipeline.forecast.estimates import Estimate
from mediamill.pipeline.forecast.sample import RowThatIsTooLong, SampleResult

_FOLDER = "forecasts"  # in resources.cache
_KEPT = 200  # samples
_VERSION = 1  # of what is measured


class SampleCache:
    """The samples of one machine and user. folder: resources.cache."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder).expanduser() / _FOLDER

    def key(self, parts: Mapping[str, Any]) -> str:
        """Returns the name of a sample that depends on these values."""
        text = json.dumps([_VERSION, parts], sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def load(self, key: str) -> SampleResult | None:
        """Returns the sample of that name, or None."""
        try:
            return _from_json((self._folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def save(self, key: str, sample: SampleResult) -> None:
        """Stores a sample, if the folder can be written."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = self._folder / f".{uuid.uuid4().hex}"
            unfinished.write_text(json.dumps(sample, default=vars), encoding="utf-8")
            unfinished.replace(self._folder / f"{key}.json")
            stored = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for path in stored[:-_KEPT]:
                path.unlink(missing_ok=True)
        except OSError:
            return


def _from_json(text: str) -> SampleResult:
    raw = json.loads(text)
    for name in (
        "units", "bytes", "visual_tokens", "prompt_tokens", "fetch_s", "prepare_s", "distinct"
    ):  # fmt: skip
        raw[name] = Estimate(**raw[name])
    raw["errors"] = {code: Estimate(**value) for code, value in raw["errors"].items()}
    raw["too_long"] = [RowThatIsTooLong(**row) for row in raw["too_long"]]
    output, engine = raw["output_tokens"], raw["engine"]
    raw["output_tokens"] = None if output is None else Estimate(**output)
    raw["engine"] = None if engine is None else EngineTotals(**engine)
    return SampleResult(**raw)
