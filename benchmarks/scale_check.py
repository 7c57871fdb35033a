"""Compares the simulation with runs on this machine: `python -m benchmarks.scale_check`.

The stages of the runs sleep, so that few processes stand for a cluster whose bottleneck is the
replicas or the workers; all else is real. Each case runs twice, with few and with many blocks; the
difference excludes the start. The shares of a core that the scheduling loop and the coordinator use
are compared with the costs of scale_model.py. Use a quiet machine: waiting for its cores is not
simulated.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.scale_driver import machine_ms, measure
from benchmarks.scale_model import Cluster, Costs
from benchmarks.scale_simulation import Simulation
from benchmarks.scale_stages import SLOTS
from tests.soak.simulated import PATCH_BYTES

CALL_ROWS = 64
AHEAD = 64  # blocks, since a real run ends and does not work ahead for ever


@dataclass(frozen=True)
class Case:
    """One comparison.

    actors: of each pool. prepare_s, generate_s: duration of a call. blocks: few and many.
    """

    name: str
    actors: int
    prepare_s: float
    generate_s: float
    blocks: tuple[int, int]

    def cluster(self) -> Cluster:
        """Returns the run as the simulation's cluster."""
        return Cluster(
            rows=self.blocks[1] * CALL_ROWS,
            replicas=self.actors,
            workers=self.actors,
            row_rate=SLOTS * CALL_ROWS / self.generate_s,
            prepare_row_s=1e-6,
            fetch_s=self.prepare_s,
            call_rows=CALL_ROWS,
            engine_rows=SLOTS * CALL_ROWS,
            rows_per_file=4 * CALL_ROWS,
            row_bytes=PATCH_BYTES,
            nodes=1,
            store_bytes=2 * AHEAD * CALL_ROWS * PATCH_BYTES,
            request_s=0.01,
            manifest_files=1,
        )


CASES = (
    Case("replicas bind", 2, 0.05, 1.0, (60, 260)),
    Case("one replica", 1, 0.05, 1.0, (40, 140)),
    Case("workers bind", 2, 0.5, 0.1, (60, 260)),
    Case("workers bind, nearer to the loop", 3, 0.4, 0.1, (60, 360)),
)


def check(case: Case, costs: Costs) -> dict[str, Any]:
    """Returns rows a second and shares of a core, of a run and of its simulation."""
    runs = [
        measure(
            blocks * CALL_ROWS,
            CALL_ROWS,
            case.actors,
            (case.prepare_s, case.generate_s),
            rows_per_file=4 * CALL_ROWS,
        )
        for blocks in case.blocks
    ]
    seconds = runs[1]["seconds"] - runs[0]["seconds"]
    simulated = Simulation(case.cluster(), costs, spread=0.0).run(300, 60)
    rows = (case.blocks[1] - case.blocks[0]) * CALL_ROWS
    return {
        "case": case.name,
        "rows_s": (rows / seconds, simulated.rows_s),
        **{
            part: ((runs[1][part] - runs[0][part]) / seconds, simulated.used[part])
            for part in ("loop", "desk")
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cost", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)))
    parser.add_argument("--slower", type=float, default=1.0, help="factor of the sleeps")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    given = dict(one.split("=", 1) for one in options.cost)
    costs = Costs(**{name: float(value) for name, value in given.items()})
    print(f"load {os.getloadavg()[0]:.1f}, machine {machine_ms():.1f} ms; measured / simulated")
    found = []
    for number in options.cases:
        case = CASES[number]
        slower = replace(
            case,
            prepare_s=case.prepare_s * options.slower,
            generate_s=case.generate_s * options.slower,
        )
        found.append(check(slower, costs))
        rows_s, loop, desk = (found[-1][name] for name in ("rows_s", "loop", "desk"))
        print(
            f"{found[-1]['case']:<34} rows/s {rows_s[0]:.0f} / {rows_s[1]:.0f}  "
            f"loop {100 * loop[0]:.1f} / {100 * loop[1]:.1f} %  "
            f"coordinator {100 * desk[0]:.1f} / {100 * desk[1]:.1f} %",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
