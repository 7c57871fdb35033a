"""The rate and the estimate that a person sees."""

from mediamill.pipeline.coordinator.coordinator import Coordinator
from mediamill.pipeline.ray_cluster.metrics import Rate, eta_s
from mediamill.schemas.job import Limits, Resources


def test_the_rate_is_that_of_the_last_seconds():
    rate = Rate()
    assert rate.update(0, 0) == rate.update(20, 0) == 0  # the model is being loaded
    assert rate.update(21, 100) == 100
    for second in range(22, 82):
        recent = rate.update(second, 100 + 10 * (second - 21))
    assert 9.9 < recent < 10.1
    assert eta_s(500, recent) is not None
    assert 49 < eta_s(500, recent) < 51
    assert eta_s(500, 0) is None


def test_counters_add_up(tmp_path):
    coordinator = Coordinator(str(tmp_path), "run", Resources(), Limits())
    for number in (3, 4):
        coordinator.add({"prepared": number})
    coordinator.add({"generated": 1})
    counters = coordinator.counters()
    assert (counters["prepared"], counters["generated"]) == (7, 1)
