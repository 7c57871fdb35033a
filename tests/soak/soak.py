"""One job under fire: runs it, has its processes killed, resumes it, and looks at what came out."""

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

LONGEST = 4  # faults in a row: more would be a broken storage, and rightly an error
STUCK_S = 240.0  # without a finished row, and without a kill
FINISHED, FINISHED_WITH_ERRORS, STOPPED = 0, 3, 1
KEPT = {"log", "runs", "ids"}  # hidden folders that stay


@dataclass(frozen=True)
class Settings:
    """fault_rate: share of the requests to the storage that go wrong. cpus: of each node."""

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
    """What happened. starts: of the command. stops: sentences of runs that ended by themselves."""

    settings: dict[str, Any]
    seconds: float = 0.0
    starts: int = 0
    stops: list[str] = field(default_factory=list)
    kills: Kills = field(default_factory=Kills)
    seen: Seen = field(default_factory=Seen)
    faults: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def soak(settings: Settings, tell: Any = None) -> Report:
    """Raises AssertionError when the job cannot be brought to its end; what is wrong with what it
    wrote is in the report.
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
                _run_under_fire(settings, place, variables, cluster, report, tell)
            report.seconds = time.monotonic() - began
        report.faults = dict(server.faults.counts)
        report.wrong += _differences(place)
        report.wrong += _leftovers(place, places)
        report.wrong += report.seen.wrong
    return report


def _run_twin(place: world.World, variables: dict[str, str], cluster: LocalCluster) -> None:
    driver = Driver(place.twin, variables | {"RAY_ADDRESS": cluster.address})
    _attend(driver, None, 0, None)
    code, _, told = driver.finish()
    assert code == FINISHED_WITH_ERRORS, told


def _run_under_fire(
    settings: Settings,
    place: world.World,
    variables: dict[str, str],
    cluster: LocalCluster,
    report: Report,
    tell: Any,
) -> None:
    killer = Killer(settings.seed, settings.kills, settings.rows, cluster)
    report.kills = killer.kills
    rows_seen = 0
    while True:
        driver = Driver(place.job, variables | {"RAY_ADDRESS": cluster.address})
        report.starts += 1
        rows_seen = _attend(driver, killer, rows_seen, tell)
        code, _, told = driver.finish()
        if code in (FINISHED, FINISHED_WITH_ERRORS):
            break
        if code > 0:
            report.stops.append(told.strip().rpartition("\n")[2])
            assert code == STOPPED, told
            assert len(report.stops) <= settings.kills, report.stops
    if killer.left:
        report.wrong.append(f"the job ended before {killer.left} of the kills")


def _attend(driver: Driver, killer: Killer | None, rows_seen: int, tell: Any) -> int:
    """Watches one start of the command to its end; the most rows that it has shown."""
    try:
        while not driver.over:
            rows_seen = max(rows_seen, driver.rows)
            if killer is not None and killer.visit(driver, rows_seen) and tell is not None:
                tell(killer.kills.log[-1])
            assert driver.moved_s < STUCK_S, f"stuck at {rows_seen} rows:\n{driver.told()}"
            time.sleep(0.05)
    except BaseException:
        driver.process.kill()
        raise
    return rows_seen


def _differences(place: world.World) -> list[str]:
    """What the output has that it should not have, and the other way round."""
    rows = place.output("out").to_pylist()
    wanted = {row["id"]: row for row in place.rows}
    twins = {(row["uri"], row["prompt"]): row for row in place.output("twin").to_pylist()}
    wrong = []
    counts = Counter(row["id"] for row in rows)
    doubled = [key for key, number in counts.items() if number > 1]
    for what, found in (
        ("lost", wanted.keys() - counts.keys()),
        ("doubled", doubled),
        ("not of the manifest", counts.keys() - wanted.keys()),
    ):
        if found:
            wrong.append(f"{len(found)} ids are {what}: {sorted(found)[:3]}")
    same = ("text", "status", "error_code", "sha256", "finish_reason", "output_tokens")
    other = []
    for row in rows:
        twin = twins[row["uri"], row["prompt"]]
        name = row["uri"].rpartition("/")[2]
        if row["error_code"] != world.BROKEN.get(name):
            other.append(f"{row['id']}: {row['error_code']} {row['error_message']}")
        elif any(row[column] != twin[column] for column in same):
            other.append(f"{row['id']}: {[(row[column], twin[column]) for column in same]}")
    if other:
        wrong.append(f"{len(other)} rows are not as undisturbed: {other[:3]}")
    return wrong


def _leftovers(place: world.World, places: Folders) -> list[str]:
    wrong = []
    hidden = place.names_below("out/_mediamill/")
    if staged := [name for name in hidden if name.split("/")[2] not in KEPT]:
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
