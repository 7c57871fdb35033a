"""Checks the installed Ray, without importing it."""

import re
from importlib.metadata import PackageNotFoundError, version

from mediamill.schemas.errors import JobError

# As in pyproject.toml: the fault tests have passed with these.
LOWEST, BELOW = (2, 60), (2, 64)


def check_ray_version() -> None:
    """Raises JobError unless a Ray that this program was tested with is installed."""
    expected = f"ray[data]>={LOWEST[0]}.{LOWEST[1]},<{BELOW[0]}.{BELOW[1]}"
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise JobError(f"Ray is not installed, expected {expected}") from None
    if not is_tested(found):
        raise JobError(f"found Ray {found}, expected {expected}: install that one")


def is_tested(found: str) -> bool:
    """Whether a version such as "2.60.1" is in the range; an unknown form is let through."""
    match = re.match(r"(\d+)\.(\d+)", found)
    return match is None or LOWEST <= (int(match[1]), int(match[2])) < BELOW
