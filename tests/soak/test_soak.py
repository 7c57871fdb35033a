"""A job whose processes are killed again and again: each row comes out once, as without kills."""

import pytest

from benchmarks import driver
from tests.soak.soak import Report, Settings, soak

FLAT_MB = 100


def assert_sound(report: Report, settings: Settings) -> None:
    assert not report.wrong, report
    assert report.kills.total == settings.kills
    assert report.seen.rows == settings.rows
    assert report.seen.growths > 2, report.seen
    assert sum(report.faults.values()) > settings.rows * 0.01, "the storage had no faults"


@pytest.mark.timeout(600)
def test_two_kills_among_two_hundred_rows():
    settings = Settings(rows=200, kills=2, nodes=2, seed=1, batch_rows=16)
    report = soak(settings)
    assert_sound(report, settings)
    # Single actors and tasks are killed in tests/pipeline/coordinator/test_kills.py.
    assert report.kills.done == {"driver": 1, "node": 1}


@pytest.mark.soak
@pytest.mark.timeout(3 * 3600)
def test_a_hundred_kills_among_twenty_thousand_rows():
    settings = Settings(rows=20_000, kills=100, seed=2, nodes=4, replicas=2, batch_rows=64)
    report = soak(settings, print)
    print(report)
    assert_sound(report, settings)
    assert min(report.kills.done.values()) >= 3


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_drivers_memory_does_not_follow_the_rows():
    few, many = (driver.measure(rows, batch_rows=256) for rows in (10_000, 100_000))
    assert many["driver"] - few["driver"] < FLAT_MB, (few, many)
    assert many["desk"] - few["desk"] < FLAT_MB, (few, many)
