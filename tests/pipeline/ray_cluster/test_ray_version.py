"""The range of Ray's versions is the one that is installed."""

import tomllib
from pathlib import Path

import pytest

from mediamill.pipeline.ray_cluster.ray_version import (
    BELOW,
    LOWEST,
    check_ray_version,
    is_tested,
)

ROOT = Path(__file__).parents[3]


def test_the_range_is_that_of_the_distribution():
    check_ray_version()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = [name for name in project["dependencies"] if name.startswith("ray[")]
    assert ray == f"ray[data]>={LOWEST[0]}.{LOWEST[1]},<{BELOW[0]}.{BELOW[1]}"


@pytest.mark.parametrize(
    ("found", "tested"),
    [
        ("2.60.0", True),
        ("2.63.9rc1", True),
        ("3.0.0.dev0", False),
        ("2.64.0", False),
        ("2.9.3", False),
        ("nightly", True),
    ],
)
def test_versions(found, tested):
    assert is_tested(found) is tested
