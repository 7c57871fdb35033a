"""The simulation of a large run, held against what is known without it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import scale
from benchmarks.scale_model import Cluster, Costs, bounds
from benchmarks.scale_simulation import Simulation, _Serial

SMALL = Cluster(rows=10**6, replicas=16, workers=64, nodes=4)
FREE = Costs(
    **dict.fromkeys(("loop_block", "loop_piece", "loop_actor", "loop_usage", "loop_task"), 1e-9),
    **dict.fromkeys(("desk_begin", "desk_done", "desk_add", "desk_row", "desk_commit"), 1e-9),
    snapshot=1e-9,
)
DESK = replace(FREE, desk_begin=0.2)
# One part each that is far narrower than the others.
NARROW = {
    "replicas": (SMALL, Costs()),
    "workers": (replace(SMALL, prepare_row_s=0.5), Costs()),
    "loop": (replace(SMALL, row_bytes=100_000), replace(FREE, loop_block=0.5)),
    # Little room, or workers would long be ahead, and have the desk's time to themselves.
    "desk": (replace(SMALL, nodes=1, store_bytes=200 * SMALL.block_bytes), DESK),
}


@pytest.mark.parametrize("name", NARROW)
def test_what_is_far_narrower_than_the_rest_binds_and_is_used_up(name):
    cluster, costs = NARROW[name]
    narrowest, second = bounds(cluster, costs)[:2]
    assert narrowest.name == name
    assert second.rows_s > 1.3 * narrowest.rows_s, "the case is not narrow"
    found = Simulation(cluster, costs).run(2000, 300)
    assert found.binds == name
    assert found.rows_s == pytest.approx(narrowest.rows_s, rel=0.06)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_faster_than_its_narrowest_part(seed):
    random = np.random.default_rng(seed)

    def drawn(low: float, high: float) -> float:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    cluster = Cluster(
        replicas=int(drawn(1, 64)),
        workers=int(drawn(2, 500)),
        row_rate=drawn(1, 50),
        prepare_row_s=drawn(0.005, 0.5),
        call_rows=int(random.choice([16, 64, 256])),
        rows_per_file=int(random.choice([256, 1024, 4096])),
        row_bytes=int(drawn(1e5, 1e7)),
        nodes=8,
    )
    costs = replace(Costs(), loop_block=drawn(0.001, 0.1), desk_begin=drawn(0.0001, 0.02))
    seconds = max(300.0, 40 * cluster.rows_per_file / (cluster.replicas * cluster.row_rate))
    found = Simulation(cluster, costs, seed).run(seconds, 6 * cluster.engine_s + 100)
    # Files are counted as a whole: one more or less falls into the time that is looked at.
    edge = cluster.rows_per_file / seconds
    assert 0 < found.rows_s <= 1.05 * bounds(cluster, costs)[0].rows_s + edge
    assert all(0 <= share <= 1.001 for share in found.used.values()), found.used


def test_a_serial_part_makes_others_wait_as_queueing_theory_says():
    """M/D/1: arrivals at random, one server, the same work each: a wait of rho s / 2 (1 - rho)."""
    clock = Simulation(SMALL, FREE)
    server, service, load = _Serial(clock), 0.01, 0.8
    random, waits = np.random.default_rng(0), []
    for gap in random.exponential(service / load, 200_000):
        clock.now += gap
        waits.append(server.work(service) - service - clock.now)
    expected = load * service / (2 * (1 - load))
    assert np.mean(waits) == pytest.approx(expected, rel=0.05)


def test_rows_in_the_engines_follow_littles_law():
    cluster = replace(SMALL, workers=200, row_rate=40.0)
    simulation = Simulation(cluster, Costs(), spread=0.5)
    found = simulation.run(1500, 200)
    working = found.used["replicas"] * cluster.replicas * cluster.slots
    assert working == pytest.approx(found.rows_s / cluster.call_rows * cluster.engine_s, rel=0.05)


def test_more_actors_make_the_loop_slower_and_larger_calls_make_it_faster():
    """At the size that is asked for, where the loop binds."""
    found = {
        name: scale.forecast(cluster, Costs()).found.rows_s
        for name, cluster in {
            "asked": Cluster(),
            "few workers": Cluster(workers=1000),
            "large calls": Cluster(call_rows=256),
        }.items()
    }
    assert found["asked"] < found["few workers"] < found["large calls"]


def test_the_stores_hold_back_what_would_not_fit():
    """Room for 40 blocks, all of which are soon taken: then workers wait, and nothing is lost."""
    cluster = replace(SMALL, nodes=1, store_bytes=80 * SMALL.block_bytes)
    found = Simulation(cluster, FREE).run(600, 200)
    assert 0.9 < found.used["stores"] <= 1
    assert found.used["replicas"] < 0.9
    assert found.binds == "stores"


def test_the_same_seed_gives_the_same_run():
    first, again, other = (Simulation(SMALL, Costs(), seed).run(60, 60) for seed in (1, 1, 2))
    assert first == again != other


def test_the_program_names_the_first_wall(capsys, tmp_path):
    path = tmp_path / "scale.json"
    scale.main(["--rows", "1e9", "--no-sweeps", "--cost", "loop_block=0.05", "--json", str(path)])
    told, printed = json.loads(path.read_text()), capsys.readouterr().out
    assert told["bounds"][0]["name"] == "loop"
    assert "bottleneck: loop" in printed
    assert told["forecast"]["cluster"]["rows"] == 10**9
    assert told["costs"]["loop_block"] == 0.05


def test_the_program_refuses_a_cost_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        scale.main(["--cost", "loop_blok=1"])
    assert "loop_blok" in capsys.readouterr().err
