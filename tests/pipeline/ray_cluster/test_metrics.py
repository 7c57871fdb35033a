"""The rate and the estimate that a person sees."""

from mediamill.pipeline.ray_cluster.metrics import Metrics, Rate, eta_s


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


def test_counters_add_up():
    metrics = Metrics()
    for number in (3, 4):
        metrics.add("prepared", number)
    metrics.add("generated", 1)
    assert metrics.counters() == {"prepared": 7, "generated": 1}
