"""Defines the progress of a running job: what its view, its log and `mediamill watch` show."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

# What a run does, in this order. A run without an engine skips `model`.
RAY, PROCESSES, MODEL, FIRST_ROWS, ROWS, FINISHING = (
    "ray",
    "processes",
    "model",
    "first_rows",
    "rows",
    "finishing",
)
# The parts of the work whose share of the time is measured.
FETCH, DECODE, PREPARE, ENGINE, WRITE = "fetch", "decode", "prepare", "engine", "write"


@dataclass(frozen=True)
class ErrorExample:
    """One error row of a code: its id, as text, and its sentence."""

    id: str
    message: str


@dataclass(frozen=True)
class Pool:
    """The processes of one actor pool.

    running: ready to work. starting: not ready yet. wanted: of both, when all have started.
    lost: ended before their time in this run, since their process or node died.
    """

    running: int = 0
    starting: int = 0
    wanted: int = 0
    lost: int = 0


@dataclass(frozen=True)
class Engines:
    """The occupancy of all engines together.

    running: rows in the batches. waiting: rows that an engine has, and that are not in its batch.
    cache_use: the share of the KV cache that is in use, in 0..1; None while it is not known.
    """

    running: int = 0
    waiting: int = 0
    cache_use: float | None = None


@dataclass(frozen=True)
class Progress:
    """The progress of a running job.

    rows_total: of the manifest.
    rows_done: finished, earlier runs included.
    rows_skipped: finished in earlier runs.
    rows_later: unfinished, and left for a later run by --limit or --sample.
    ok, errors (by code): rows of this run. examples: one error row for each code.
    prompt_tokens, visual_tokens, output_tokens: of this run. tokens_s: output tokens a second.
    seconds: since this run began.
    rate_rows_s: recent rows a second of this run.
    eta_s: seconds to the end; None while unknown.
    prepared, generated, written: rows of this run that left each stage.
    engines_replaced: copies of the model that broke in this run and were reloaded.
    generates: whether the run has engines.
    busy: utilization of each pool (prepare, generate), from 0 to 1.
    binds: the pool that is the bottleneck, prepare or generate; None if neither is.
    shares: recent share of the time, from 0 to 1, by part of the work: of the workers' time that
        they wait for a fetch, decode, and prepare; of the engines' and the writers' that they work.
    bound_by: the part of the work that limits the rate; None if none does.
    engine_rows_s: rows a second of all engines while they work: their ceiling.
    workers, replicas: the processes that prepare, and those that have an engine.
    phase: what the run does now, one of the constants above. phase_s: since when, in seconds.
    model_bytes: of the weights that are loaded; None if it is not known.
    waits_for: a sentence that says which resources the cluster lacks before the run can begin.
    """

    rows_total: int
    rows_done: int
    rows_skipped: int = 0
    ok: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    output_tokens: int = 0
    seconds: float = 0.0
    rate_rows_s: float = 0.0
    eta_s: float | None = None
    prepared: int = 0
    generated: int = 0
    written: int = 0
    engines_replaced: int = 0
    busy: Mapping[str, float] = field(default_factory=dict)
    binds: str | None = None
    waits_for: str | None = None
    rows_later: int = 0
    examples: Mapping[str, ErrorExample] = field(default_factory=dict)
    prompt_tokens: int = 0
    visual_tokens: int = 0
    tokens_s: float = 0.0
    generates: bool = True
    shares: Mapping[str, float] = field(default_factory=dict)
    bound_by: str | None = None
    engine_rows_s: float | None = None
    engines: Engines = Engines()
    workers: Pool = Pool()
    replicas: Pool = Pool()
    phase: str = ROWS
    phase_s: float = 0.0
    model_bytes: int | None = None

    @property
    def rows_wanted(self) -> int:
        """Rows of the manifest that are finished when this run is, earlier runs included."""
        return self.rows_total - self.rows_later


def progress_of(values: Mapping[str, Any]) -> Progress:
    """Returns the Progress that `dataclasses.asdict` made these values of.

    Keys of later versions are left out. Raises TypeError for values that are no progress.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"found {type(values).__name__}, expected a mapping")
    names = {each.name for each in fields(Progress)}
    known = {name: value for name, value in values.items() if name in names}
    for name, kind in (("engines", Engines), ("workers", Pool), ("replicas", Pool)):
        if name in known:
            known[name] = kind(**known[name])
    examples = known.get("examples") or {}
    known["examples"] = {code: ErrorExample(**example) for code, example in examples.items()}
    return Progress(**known)
