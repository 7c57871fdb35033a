"""Remembers on this machine which checks of a checkpoint have passed, so that they run once.

A check is known by a digest of all that it depends on. The file holds the last ones of them.
"""

import contextlib
import uuid
from pathlib import Path

_NAME = "checked.txt"
_KEPT = 256  # digests; each is a line


def is_remembered(cache: str, digest: str) -> bool:
    """Whether a check has passed. cache: a folder of this machine; may begin with ~."""
    path = _path(cache)
    return path is not None and digest in _digests(path)


def remember(cache: str, digest: str) -> None:
    """Notes that a check has passed. A folder that cannot be written is no error."""
    path = _path(cache)
    if path is None:
        return
    digests = [other for other in _digests(path) if other != digest][1 - _KEPT :]
    temporary = path.with_name(f".{uuid.uuid4().hex}.{_NAME}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text("\n".join([*digests, digest, ""]), encoding="ascii")
            temporary.replace(path)  # of two processes at once, one check may run again
        finally:
            temporary.unlink(missing_ok=True)


def _path(cache: str) -> Path | None:
    try:
        return Path(cache).expanduser() / _NAME
    except RuntimeError:  # the user has no home
        return None


def _digests(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return []
