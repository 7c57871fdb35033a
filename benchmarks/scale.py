"""Forecasts the bottleneck of a large run: `python -m benchmarks.scale --replicas 512 ...`.

Uses a model and a simulation, with costs that the neighbouring programs measured: see
docs/scale.md. Options are the fields of scale_model.Cluster; `--cost loop_block=0.003` changes one
of scale_model.Costs. Prints the parts in order of their limits, and the settings that change them.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks import scale_model
from benchmarks.scale_model import Cluster, Costs
from benchmarks.scale_simulation import Found, Simulation

DAY_S = 86_400
_SIMULATED_S, _WRITES = 180.0, 40  # minimum time, and minimum number of files
_MOST_S, _ENGINE_TIMES = 10_000.0, 6  # before that, the engines turn over a few times


@dataclass(frozen=True)
class Forecast:
    """The forecast of a run."""

    cluster: Cluster
    found: Found
    seconds: float

    @property
    def share(self) -> float:
        """The rate as a share of the replicas'."""
        return self.found.rows_s / (self.cluster.replicas * self.cluster.row_rate)


def forecast(cluster: Cluster, costs: Costs, seed: int = 0) -> Forecast:
    files_s = _WRITES * cluster.rows_per_file / (cluster.replicas * cluster.row_rate)
    seconds = min(max(_SIMULATED_S, files_s), _MOST_S)
    found = Simulation(cluster, costs, seed).run(seconds, _ENGINE_TIMES * cluster.engine_s)
    # The media store is a limit too, though its queue is not simulated.
    rows_s = min(found.rows_s, cluster.prefixes * costs.media_rate / costs.media_requests)
    whole = scale_model.start(cluster, costs).seconds
    return Forecast(cluster, found, whole + cluster.rows / rows_s if rows_s else float("inf"))


def sweeps(cluster: Cluster) -> dict[str, list[Cluster]]:
    """Returns clusters that differ in one value from this one, by its name."""

    def sized(replicas: int) -> Cluster:
        workers = max(2, round(cluster.workers * replicas / cluster.replicas))
        nodes = max(1, round(cluster.nodes * replicas / cluster.replicas))
        return replace(cluster, replicas=replicas, workers=workers, nodes=nodes)

    needed = cluster.replicas * cluster.row_rate * cluster.prepare_row_s
    return {
        "replicas": [sized(replicas) for replicas in (1, 8, 64, 512, 2048)],
        "workers": [
            replace(cluster, workers=round(part))
            for part in (needed / 2, 1.2 * needed, 4 * needed, cluster.workers, 4 * cluster.workers)
        ],
        "call_rows": [replace(cluster, call_rows=rows) for rows in (16, 64, 128, 256)],
        "rows_per_file": [replace(cluster, rows_per_file=rows) for rows in (256, 4096, 65_536)],
        "row_bytes": [
            replace(cluster, row_bytes=size) for size in (100_000, 2_360_000, 50_000_000)
        ],
    }


def _line(found: Forecast, name: str) -> str:
    used = "  ".join(f"{part} {100 * share:.0f} %" for part, share in found.found.used.items())
    value = getattr(found.cluster, name)
    return (
        f"{value:>12,}  {found.found.rows_s:>9,.0f} rows/s  {100 * found.share:>4.0f} %  "
        f"{found.seconds / DAY_S:>7.1f} days  bottleneck: {found.found.binds:<9}  {used}"
    )


def _say(cluster: Cluster, costs: Costs) -> dict[str, Any]:
    wanted = cluster.replicas * cluster.row_rate
    print(f"{cluster.replicas:,} replicas could do {wanted:,.0f} rows/s.")
    print("\nThe limit of each part, in rows/s, and what changes it:")
    bounds = scale_model.bounds(cluster, costs)
    for bound in bounds:
        print(f"{bound.name:>10} {bound.rows_s:>12,.0f}  {bound.setting}")
    base = forecast(cluster, costs)
    print("\nSimulated:")
    print(_line(base, "replicas"))
    print(f"a step of the loop takes {base.found.step_s:.1f} s")
    start = scale_model.start(cluster, costs)
    parts = ", ".join(f"{name[:-2]} {value:.0f} s" for name, value in asdict(start).items())
    print(f"\nUntil rows flow, apart from weights: {parts}")
    memory = scale_model.memory(cluster, costs)
    print("Memory: " + ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in memory.items()))
    requests = scale_model.requests(cluster, costs, base.found.rows_s)
    print("Requests: " + ", ".join(f"{name} {rate:,.0f}/s" for name, rate in requests.items()))
    network = base.found.rows_s * cluster.row_bytes
    print(f"Patches from workers to replicas: {network / 1e9:.1f} GB/s over {cluster.nodes} nodes")
    return {
        "bounds": [asdict(bound) for bound in bounds],
        "forecast": asdict(base),
        "start": asdict(start),
        "memory": memory,
        "requests": requests,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(Cluster):
        kind = float if isinstance(field.default, float) else _whole
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    parser.add_argument("--cost", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--no-sweeps", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    cluster = Cluster(**{field.name: getattr(options, field.name) for field in fields(Cluster)})
    given = dict(one.split("=", 1) for one in options.cost)
    if unknown := given.keys() - {field.name for field in fields(Costs)}:
        parser.error(f"--cost: found {', '.join(sorted(unknown))}, expected a field of Costs")
    costs = Costs(**{name: float(value) for name, value in given.items()})
    report = _say(cluster, costs)
    report["sweeps"] = {}
    for name, clusters in sweeps(cluster).items() if not options.no_sweeps else ():
        print(f"\n{name}:")
        found = [forecast(one, costs) for one in clusters]
        for one in found:
            print(_line(one, name), flush=True)
        report["sweeps"][name] = [asdict(one) for one in found]
    if options.json:
        options.json.write_text(json.dumps({"costs": asdict(costs), **report}, indent=1))


def _whole(text: str) -> int:
    """Parses a whole number, also one like 1e9."""
    return int(float(text))


if __name__ == "__main__":
    main()
