"""Runs a job while its processes are killed, resumes it, and checks the output."""

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from tests import processes
from tests.servers.s3 import faulty_s3
from tests.soak import world
from tests.soak.cluster import Folders, LocalCluster, environment, folders
from tests.soak.driver import Driver
from tests.soak.killer import Killer, Kills
from tests.soak.reader import Seen, reading

LONGEST = 4  # faults in a row; with more the storage counts as broken
STUCK_S = 240.0  # without a finished row, and without a kill
FINISHED, FINISHED_WITH_ERRORS, STOPPED = 0, 3, 1
PERMANENT = {"log", "runs", "ids", "status", "job.json"}  # hidden names that remain


@dataclass(frozen=True)
class Settings:
    """fault_rate: fraction of the storage requests that fail. cpus: of each node."""

    rows: int = 500
    kills: int = 5
    seed: int = 1
    nodes: int = 3
    cpus: int = 2
    fault_rate: float = 0.2
    replicas: int = 1
    prepare_workers: int = 2
    batch_rows: int = 32


@dataclass
class Report:
    """What happened. starts: of the command. stops: messages of runs that stopped by themselves."""

    settings: dict[str, Any]
    seconds: float = 0.0
    starts: int = 0
    stops: list[str] = field(default_factory=list)
    kills: Kills = field(default_factory=Kills)
    seen: Seen = field(default_factory=Seen)
    faults: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def soak(settings: Settings, log: Any = None) -> Report:
    """Runs the soak. Errors in the output are in the report.

    Raises AssertionError when the job does not finish.
    """
    report = Report(asdict(settings))
    with ExitStack() as stack:
        places = stack.enter_context(folders())
        server = stack.enter_context(faulty_s3(settings.seed, rate=0.0, longest=LONGEST))
        resources = {
            "replicas": settings.replicas,
            "prepare_workers": settings.prepare_workers,
            "batch_rows": settings.batch_rows,
        }
        place = world.make(places.base, server.direct, settings.rows, resources)
        variables = environment(places, server.environment)
        cluster = LocalCluster(settings.nodes, settings.cpus, places, variables)
        with cluster:
            _run_twin(place, variables, cluster)
            server.faults.rate = settings.fault_rate
            began = time.monotonic()
            with reading(f"{world.BUCKET}/out", server.direct) as report.seen:
                _run_with_kills(settings, place, variables, cluster, report, log)
            report.seconds = time.monotonic() - began
        report.faults = dict(server.faults.counts)
        report.wrong += _differences(place)
        report.wrong += _leftovers(place, places)
        report.wrong += report.seen.wrong
    return report


def _run_twin(place: world.World, variables: dict[str, str], cluster: LocalCluster) -> None:
    driver = Driver(place.twin, variables | {"RAY_ADDRESS": cluster.address})
    _watch(driver, None, 0, None)
    code, _, errors = driver.finish()
    assert code == FINISHED_WITH_ERRORS, errors


def _run_with_kills(
    settings: Settings,
    place: world.World,
    variables: dict[str, str],
    cluster: LocalCluster,
    report: Report,
    log: Any,
) -> None:
    killer = Killer(settings.seed, settings.kills, settings.rows, cluster)
    report.kills = killer.kills
    rows_seen = 0
    while True:
        driver = Driver(place.job, variables | {"RAY_ADDRESS": cluster.address})
        report.starts += 1
        rows_seen = _watch(driver, killer, rows_seen, log)
        code, _, errors = driver.finish()
        if code in (FINISHED, FINISHED_WITH_ERRORS):
            break
        if code > 0:
            report.stops.append(errors.strip().rpartition("\n")[2])
            assert code == STOPPED, errors
            assert len(report.stops) <= settings.kills, report.stops
    if killer.left:
        report.wrong.append(f"the job ended before {killer.left} of the kills")


def _watch(driver: Driver, killer: Killer | None, rows_seen: int, log: Any) -> int:
    """Waits for the end of one start of the command. Returns the largest number of rows shown."""
    try:
        while not driver.over:
            rows_seen = max(rows_seen, driver.rows)
            if killer is not None and killer.kill_if_due(driver, rows_seen) and log is not None:
                log(killer.kills.log[-1])
            assert driver.unchanged_s < STUCK_S, f"stuck at {rows_seen} rows:\n{driver.stderr()}"
            time.sleep(0.05)
    except BaseException:
        driver.process.kill()
        raise
    return rows_seen


def _differences(place: world.World) -> list[str]:
    """Compares the output with the manifest and with the twin. Returns the errors."""
    rows = place.output("out").to_pylist()
    expected = {row["id"]: row for row in place.rows}
    twins = {(row["uri"], row["prompt"]): row for row in place.output("twin").to_pylist()}
    wrong = []
    counts = Counter(row["id"] for row in rows)
    doubled = [key for key, number in counts.items() if number > 1]
    for kind, ids in (
        ("lost", expected.keys() - counts.keys()),
        ("doubled", doubled),
        ("not of the manifest", counts.keys() - expected.keys()),
    ):
        if ids:
            wrong.append(f"{len(ids)} ids are {kind}: {sorted(ids)[:3]}")
    same = ("text", "status", "error_code", "sha256", "finish_reason", "output_tokens")
    changed = []
    for row in rows:
        twin = twins[row["uri"], row["prompt"]]
        name = row["uri"].rpartition("/")[2]
        if row["error_code"] != world.BROKEN.get(name):
            changed.append(f"{row['id']}: {row['error_code']} {row['error_message']}")
        elif any(row[column] != twin[column] for column in same):
            changed.append(f"{row['id']}: {[(row[column], twin[column]) for column in same]}")
    if changed:
        wrong.append(f"{len(changed)} rows differ from the twin: {changed[:3]}")
    return wrong


def _leftovers(place: world.World, places: Folders) -> list[str]:
    wrong = []
    hidden = place.names_below("out/_mediamill/")
    if staged := [name for name in hidden if name.split("/")[2] not in PERMANENT]:
        wrong.append(f"{len(staged)} hidden files are left: {staged[:3]}")
    if "out/_SUCCESS" not in place.names_below("out/_"):
        wrong.append("_SUCCESS is missing")
    alive = processes.with_variable("TMPDIR", str(places.temporary))
    if alive := processes.wait_for_end(alive, 30):
        wrong.append(f"processes are left: {[processes.title(pid)[:80] for pid in alive]}")
    for folder in (places.temporary, places.memory):
        if files := sorted(
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
        ):
            wrong.append(f"{len(files)} files are left in {folder.name}: {files[:5]}")
    return wrong
