"""Knows which error rows fail again as long as neither their media nor a key changes."""

import contextlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode

_CLOCKS_S = 2.0  # by which the clocks of a store and of the run may differ


def may_succeed(code: str, row: Mapping[str, Any]) -> bool:
    """Returns whether a row that fails again (FAILS_AGAIN) may succeed: its media have changed.

    row: its columns `uri` or `media`, and `run_id`, where the result has them. Media whose time of
    change cannot be known, such as those of web servers, may have changed.
    """
    if code == ErrorCode.PROMPT_INVALID:  # the prompt is in the manifest
        return False
    media = row.get(c.MEDIA) or []
    uris = [row.get(c.URI), *(medium and medium.get(c.MEDIA_URI) for medium in media)]
    begun = _time_of(row.get(c.RUN_ID) or "")
    return any(_may_have_changed(uri, begun) for uri in uris if uri)


def _time_of(run_id: str) -> float:
    """Returns when a run began, in seconds since the epoch; 0 if its name does not say it."""
    try:
        time = run_id.partition("-")[0]
        return datetime.strptime(f"{time}+0000", "%Y%m%dT%H%M%S%z").timestamp()
    except ValueError:
        return 0.0


def _may_have_changed(uri: str, begun: float) -> bool:
    scheme = storage.scheme(uri)
    if scheme == "data":
        return False
    if scheme == "file":
        try:
            info = Path(storage.absolute(uri)).stat()
        except (OSError, ValueError):
            return True
        # A file that is moved to its place keeps the time of its content, not that of its name.
        return max(info.st_mtime, info.st_ctime) > begun
    if scheme == "s3":
        with contextlib.suppress(Exception):
            place = storage.resolve(uri)
            changed = storage.with_retries(place, lambda fs: fs.info(place.path))["LastModified"]
            return bool(changed.timestamp() > begun - _CLOCKS_S)
    return True
