"""Lays the progress of a run out in lines of a terminal. Pure functions: text in, text out.

A line is made of fields. Where it is too long, whole fields are left out, the least important
first; only the sentence of an error is cut, between two words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.cells import cell_len

from mediamill.schemas import progress as p
from mediamill.schemas.progress import Pool, Progress

Style = Literal["", "strong", "faint", "good", "bad", "accent"]

_GAP = "  "
_MAX_BAR, _MIN_BAR = 40, 8
_MAX_ERROR_LINES = 4
_PARTS = (p.FETCH, p.DECODE, p.PREPARE, p.ENGINE, p.WRITE)
_VERDICTS = {
    p.FETCH: "the engines wait for files to be fetched",
    p.DECODE: "the engines wait for media to be decoded",
    p.PREPARE: "the engines wait for rows to be prepared",
    p.ENGINE: "the engines limit the rate: rows wait for them",
}
_SHORT_VERDICTS = {
    p.FETCH: "bottleneck: fetch",
    p.DECODE: "bottleneck: decode",
    p.PREPARE: "bottleneck: prepare",
    p.ENGINE: "bottleneck: engine",
}
_WITHOUT_ENGINES = {
    p.FETCH: "the workers wait for files to be fetched",
    p.DECODE: "decoding limits the rate",
    p.PREPARE: "the workers limit the rate",
}


@dataclass(frozen=True)
class Field:
    """A piece of a line that is shown whole or not at all. rank: the highest is left out first."""

    text: str
    rank: int = 0
    style: Style = ""


Line = Sequence[Field]


@dataclass(frozen=True)
class Symbols:
    """The characters of bars; a terminal that is not UTF-8 has ASCII ones."""

    full: str = "━"
    empty: str = "─"
    arrow: str = "→"


ASCII = Symbols("#", "-", "->")


@dataclass(frozen=True)
class Title:
    """What runs. step: of a job with several; else empty."""

    command: str
    output: str = ""
    step: str = ""


def width_of(line: Line) -> int:
    """Returns the width of a line in cells of the terminal."""
    return sum(cell_len(field.text) for field in line) + len(_GAP) * max(0, len(line) - 1)


def text_of(line: Line) -> str:
    """Returns the text of a line."""
    return _GAP.join(field.text for field in line)


def fit(fields: Line, width: int) -> Line:
    """Returns the fields that fit into `width` cells, in their order."""
    shown = [field for field in fields if field.text]
    while shown and width_of(shown) > width:
        highest = max(field.rank for field in shown)
        last = max(number for number, field in enumerate(shown) if field.rank == highest)
        del shown[last]
    return shown


def cut(text: str, width: int) -> str:
    """Returns the text, or as many of its words as fit into `width` cells with an ellipsis."""
    text = " ".join(text.split())
    if cell_len(text) <= width:
        return text
    words = text.split(" ")
    while words and cell_len(" ".join(words)) + 2 > width:
        words.pop()
    return f"{' '.join(words)} …" if words else ""


def view(
    progress: Progress,
    title: Title,
    width: int,
    height: int,
    symbols: Symbols = Symbols(),
) -> list[Line]:
    """Returns the lines of the view: at most `height`, each of at most `width` cells."""
    lines = [
        _title_line(progress, title, width, symbols),
        _bar_line(progress, width, symbols),
        _rate_line(progress, width),
        _run_line(progress, width),
        _share_line(progress, width),
        _verdict_line(progress, width),
        _process_line(progress, width),
    ]
    lines = [line for line in lines if line]
    lines += _error_lines(progress, width)
    return lines[: max(1, height)]


def compact(progress: Progress, width: int = 200) -> str:
    """Returns one line: rows, errors, rate, and the time that is left, or that it took."""
    left = f"ETA {duration(progress.eta_s)}" if progress.eta_s else ""
    fields = [
        Field(f"{progress.rows_done:,} of {progress.rows_wanted:,} rows"),
        Field(_count(_errors(progress), "error") or "0 errors", 1),
        Field(f"{progress.rate_rows_s:.1f} rows/s" if progress.rate_rows_s else "", 2),
        Field(left, 3),
        Field(duration(progress.seconds), 4),
        Field(_SHORT_VERDICTS.get(progress.bound_by or "", ""), 5),
    ]
    return text_of(fit(fields, width))


def phase_title(progress: Progress) -> str:
    """Returns what the run does now, before its first rows."""
    if progress.waits_for:
        return f"waiting: {progress.waits_for}"
    if progress.phase == p.RAY:
        return "starting Ray"
    if progress.phase == p.PROCESSES:
        pools = [progress.workers, progress.replicas]
        running, wanted = sum(pool.running for pool in pools), sum(pool.wanted for pool in pools)
        return f"starting processes ({running} of {wanted})" if wanted else "starting processes"
    if progress.phase == p.MODEL:
        size = "" if progress.model_bytes is None else f" ({size_text(progress.model_bytes)})"
        return f"loading the model{size}"
    if progress.phase == p.FIRST_ROWS:
        return f"first rows ({progress.prepared} prepared)"
    return "writing the last rows" if progress.phase == p.FINISHING else "running"


def phase_result(phase: str, progress: Progress) -> tuple[str, str]:
    """Returns the name of a phase that has ended, and its facts."""
    if phase == p.RAY:
        return "Ray", "started"
    if phase == p.PROCESSES:
        replicas = _count(progress.replicas.wanted, "replica") if progress.generates else ""
        workers = _count(progress.workers.wanted, "worker")
        facts = ", ".join(part for part in (workers, replicas) if part)
        return "processes", facts if progress.workers.wanted else "started"
    if phase == p.MODEL:
        return "model", "" if progress.model_bytes is None else size_text(progress.model_bytes)
    if phase == p.FIRST_ROWS:
        return "first rows", f"{progress.generated:,} generated" if progress.generates else ""
    return phase, ""


def phase_line(name: str, facts: str, seconds: float, width: int) -> Line:
    """Returns the line of a phase that has ended."""
    fields = [
        Field(f"{name:<10}", 0, "strong"),
        Field(facts, 1),
        Field(f"{seconds:.1f} s", 2, "faint"),
    ]
    return fit(fields, width)


def duration(seconds: float) -> str:
    """Returns seconds as m:ss, h:mm:ss, or with days."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size_text(size: int) -> str:
    """Returns bytes in the unit that suits them."""
    number = float(size)
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _title_line(progress: Progress, title: Title, width: int, symbols: Symbols) -> Line:
    fields = [
        Field(title.command, 0, "strong"),
        Field(f"{symbols.arrow} {title.output}" if title.output else "", 3),
        Field(f"step: {title.step}" if title.step else "", 1),
        Field(_phase_words(progress), 2, "accent"),
        Field(duration(progress.seconds), 1, "faint"),
    ]
    return fit(fields, width)


def _phase_words(progress: Progress) -> str:
    if progress.phase in (p.ROWS, p.FINISHING):
        return "" if progress.phase == p.ROWS else phase_title(progress)
    return phase_title(progress)


def _bar_line(progress: Progress, width: int, symbols: Symbols) -> Line:
    done, wanted = progress.rows_done, progress.rows_wanted
    share = min(1.0, done / wanted) if wanted else 1.0
    percent, rows = f"{int(100 * share):3d} %", f"{done:,} of {wanted:,} rows"
    short = fit([Field(percent), Field(rows, 1)], width)
    room = min(_MAX_BAR, width - width_of(short) - len(_GAP))
    if room < _MIN_BAR:
        return short
    full = int(share * room)
    bar = Field(symbols.full * full + symbols.empty * (room - full), 0, "good")
    return [bar, *short]


def _rate_line(progress: Progress, width: int) -> Line:
    fields = []
    if progress.rate_rows_s:
        fields.append(Field(f"{progress.rate_rows_s:,.1f} rows/s"))
    if progress.eta_s is not None and progress.phase == p.ROWS:
        fields.append(Field(f"ETA {duration(progress.eta_s)}", 1, "strong"))
    if progress.generates and progress.tokens_s:
        fields.append(Field(f"{progress.tokens_s:,.0f} tokens/s", 2))
    if progress.generates and progress.engine_rows_s and progress.rate_rows_s:
        fields.append(Field(f"engines at work: {progress.engine_rows_s:,.1f} rows/s", 3, "faint"))
    return fit(fields, width)


def _run_line(progress: Progress, width: int) -> Line:
    errors = _errors(progress)
    fields = [
        Field(f"this run: {progress.ok:,} ok", 0),
        Field(_count(errors, "error") or "0 errors", 0, "bad" if errors else ""),
    ]
    if progress.rows_skipped:
        fields.append(Field(f"earlier runs: {progress.rows_skipped:,} rows", 1, "faint"))
    if progress.rows_later:
        fields.append(Field(f"left for later: {progress.rows_later:,} rows", 2, "faint"))
    return fit(fields, width)


def _share_line(progress: Progress, width: int) -> Line:
    if progress.phase != p.ROWS or not progress.shares.keys() - {p.WRITE}:
        return []
    ranks = {p.ENGINE: 1, p.FETCH: 2, p.DECODE: 2, p.PREPARE: 3, p.WRITE: 4}
    return fit(
        [
            Field("busy:", 0),
            *(
                Field(
                    f"{part} {_percent(progress.shares[part])}",
                    ranks[part],
                    "accent" if part == progress.bound_by else "",
                )
                for part in _PARTS
                if part in progress.shares
            ),
        ],
        width,
    )


def _verdict_line(progress: Progress, width: int) -> Line:
    bound = progress.bound_by
    if bound is None or progress.phase != p.ROWS:
        return []
    words = (_VERDICTS if progress.generates else _WITHOUT_ENGINES).get(bound, "")
    short = _SHORT_VERDICTS.get(bound, "")
    return fit([Field(words if cell_len(words) <= width else short)], width)


def _process_line(progress: Progress, width: int) -> Line:
    if progress.phase != p.ROWS:
        return []
    fields = []
    engines = progress.engines
    if progress.generates and (engines.running or engines.waiting):
        fields.append(Field(f"engines: {engines.running:,} rows run", 0))
        fields.append(Field(f"{engines.waiting:,} wait", 1))
        if engines.cache_use is not None:
            fields.append(Field(f"cache {_percent(engines.cache_use)}", 2))
    if progress.generates and progress.replicas.wanted:
        fields.append(_pool_field("replicas", progress.replicas, 3))
    if progress.workers.wanted:
        fields.append(_pool_field("workers", progress.workers, 4))
    lost = progress.replicas.lost + progress.workers.lost
    if lost:
        fields.append(Field(f"{lost} replaced", 2, "bad"))
    return fit(fields, width)


def _pool_field(name: str, pool: Pool, rank: int) -> Field:
    missing = pool.running < pool.wanted
    text = f"{name} {pool.running} of {pool.wanted}" if missing else f"{name} {pool.running}"
    return Field(text, rank, "bad" if missing else "")


def _error_lines(progress: Progress, width: int) -> list[Line]:
    """Returns a line for each of the most frequent codes, with one row's id and sentence."""
    by_count = sorted(progress.errors.items(), key=lambda item: (-item[1], item[0]))
    lines: list[Line] = []
    for code, count in by_count[:_MAX_ERROR_LINES]:
        head = Field(f"{code} {count:,}", 0, "bad")
        example = progress.examples.get(code)
        room = width - width_of([head]) - len(_GAP)
        text = "" if example is None else cut(f"{example.id}: {example.message}", room)
        lines.append(fit([head, Field(text, 1, "faint")], width))
    if (more := len(by_count) - _MAX_ERROR_LINES) > 0:
        lines.append(fit([Field(f"and {_count(more, 'more code')}", 0, "faint")], width))
    return [line for line in lines if line]


def _errors(progress: Progress) -> int:
    return sum(progress.errors.values())


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else ""


def with_time(progress: Progress, seconds: float) -> Progress:
    """Returns the progress as it is `seconds` later, without news."""
    left = None if progress.eta_s is None else max(0.0, progress.eta_s - seconds)
    return replace(progress, seconds=progress.seconds + seconds, eta_s=left)
