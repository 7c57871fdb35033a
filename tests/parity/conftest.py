"""The cases of the parity suite: their number and their seed are options of the command line."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignores the tests of the published vocabulary when its location is not given."""
    published = collection_path.name in ("test_vocabulary.py", "test_grammar.py")
    if published and config.getoption("qwen_wheel") is None:
        return True
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "parity_case" not in metafunc.fixturenames:
        return
    seed = metafunc.config.getoption("parity_seed")
    total = metafunc.config.getoption("parity_cases")
    step = 3 if metafunc.definition.get_closest_marker("every_third_case") else 1
    metafunc.parametrize(
        "parity_case",
        [(seed, number, total) for number in range(0, total, step)],
        ids=[f"seed{seed}-case{number}" for number in range(0, total, step)],
        scope="module",
    )


@pytest.fixture(scope="session")
def parity_seed(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("parity_seed")
