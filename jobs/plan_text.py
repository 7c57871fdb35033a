"""Prints a forecast: as text of one screen, 80 columns wide, and as a JSON object."""

from dataclasses import asdict
from textwrap import wrap

from mediamill.pipeline.forecast.estimates import Estimate
from mediamill.pipeline.forecast.forecast import Forecast

_WIDTH, _LABEL = 80, 10
_FEW_COPIES = 0.99  # a larger share of distinct rows is not worth a line
_MESSAGES = 3  # of errors that are shown


def forecast_text(forecast: Forecast, command: str) -> str:
    """Returns the lines; the last one is the command that runs the job."""
    lines: list[str] = []
    for label, text in _paragraphs(forecast):
        wrapped = wrap(text, _WIDTH - _LABEL - 1) or [""]
        lines += [f"{label if not n else '':{_LABEL}} {line}" for n, line in enumerate(wrapped)]
    return "\n".join([*lines, "to run it:", f"  {command}"])


def _paragraphs(forecast: Forecast) -> list[tuple[str, str]]:
    sample, times = forecast.sample, forecast.times
    paragraphs = [("rows", _rows_text(forecast))]
    paragraphs += [("note", note) for note in forecast.notes[:3]]
    if not forecast.units.value:
        return [*paragraphs, ("", "nothing is left to do")]
    paragraphs += [
        ("sample", _sample_text(forecast)),
        ("media", f"{_bytes(sample.bytes.value)}{_interval(sample.bytes)}"),
        (
            "tokens",
            f"{_number(sample.prompt_tokens.value)} of prompts{_interval(sample.prompt_tokens)}, "
            f"{_number(sample.visual_tokens.value)} of them visual"
            f"{_interval(sample.visual_tokens)}",
        ),
        (
            "",
            f"{_number(forecast.output_tokens.value)} of answers"
            f"{_interval(forecast.output_tokens)}: {forecast.output_basis}",
        ),
    ]
    paragraphs += _error_paragraphs(forecast)
    if sample.distinct.value < _FEW_COPIES:
        low, high = (100 * (1 - one) for one in (sample.distinct.high, sample.distinct.low))
        text = f"{100 * (1 - sample.distinct.value):.1f} % of rows ({low:.1f} to {high:.1f})"
        paragraphs.append(("copies", f"{text} are copies of others; dedupe answers each once"))
    if times is None:
        text = "not known: the model did not run here; --run N, --gpu NAME or --rate N say more"
        paragraphs.append(("time", text))
    else:
        rate = forecast.units.value / max(1e-9, times.seconds.value)
        start = f", {_seconds(times.start_s.value)} of it to start" if times.start_s.value else ""
        paragraphs.append(
            (
                "time",
                f"{_seconds(times.seconds.value)} ({_seconds(times.seconds.low)} to "
                f"{_seconds(times.seconds.high)}), {rate:.3g} {forecast.unit}/s{start}; "
                f"{times.basis}",
            )
        )
        if times.stages:
            stages = [f"{name} {_seconds(one.value)}" for name, one in times.stages.items()]
            paragraphs.append(("stages", f"each alone: {', '.join(stages)}"))
            paragraphs.append(("binds", _balance(forecast)))
    if forecast.cost is not None:
        cost = forecast.cost
        per = f"{forecast.machines} x {forecast.price:g} per {forecast.machine}-hour"
        paragraphs.append(
            ("cost", f"{cost.value:,.2f} ({cost.low:,.2f} to {cost.high:,.2f}): {per}")
        )
    memory = forecast.memory
    if memory.problem:
        paragraphs.append(("memory", memory.problem))
    else:
        paragraphs.append(
            (
                "memory",
                f"weights {_bytes(memory.weights)}, cache {_bytes(memory.cache_row)} a row "
                f"({memory.rows} rows at once fit in {_bytes(memory.capacity)}), each prepare "
                f"worker at most {_bytes(memory.host)}",
            )
        )
    return paragraphs


def _rows_text(forecast: Forecast) -> str:
    finished = f"{forecast.done:,} done, {forecast.failed:,} failed"
    if forecast.unit == "windows":
        return (
            f"{_number(forecast.units.value)} windows to do{_interval(forecast.units)} of "
            f"{forecast.rows:,} videos; windows {finished}"
        )
    return f"{forecast.to_do:,} to do, {finished}, of {forecast.rows:,}"


def _sample_text(forecast: Forecast) -> str:
    sample = forecast.sample
    by = f", by {sample.sorted_by}" if sample.sorted_by else ""
    earlier = " (by an earlier plan)" if forecast.remembered else ""
    what = "videos" if forecast.unit == "windows" else "rows"
    return f"{sample.rows:,} {what} measured in {sample.seconds:.0f} s{by}{earlier}"


def _error_paragraphs(forecast: Forecast) -> list[tuple[str, str]]:
    sample = forecast.sample
    paragraphs = []
    if sample.errors:
        units = max(1.0, forecast.units.value)
        by_count = sorted(sample.errors.items(), key=lambda item: -item[1].value)
        shares = [f"{code} {100 * one.value / units:.2g} %" for code, one in by_count]
        paragraphs.append(("errors", f"expected: {', '.join(shares)}"))
        for code, _ in by_count[:_MESSAGES]:
            message = sample.messages.get(code, "")
            cut = _WIDTH - _LABEL - 4 - len(code)
            shown = message if len(message) <= cut else f"{message[: cut - 3]}..."
            paragraphs.append(("", f"{code}: {shown}"))
    for row in sample.too_long[:_MESSAGES]:
        tokens = "too many" if row.tokens is None else f"{row.tokens:,}"
        text = f"row {row.id}: {tokens} tokens, the model takes {row.limit:,}"
        paragraphs.append(("too long", text))
    return paragraphs


def _balance(forecast: Forecast) -> str:
    times = forecast.times
    assert times is not None
    workers = times.workers_per_engine
    if workers >= 1:
        feeds = f"an engine needs {min(workers, 9999):.2g} prepare workers (of two CPUs)"
    elif workers > 0:
        feeds = f"one prepare worker (of two CPUs) feeds {min(1 / workers, 9999):.2g} engines"
    else:
        feeds = "the engine waits for nothing"
    now = f"{forecast.pools.replicas} engines and {forecast.pools.prepare_workers} workers here"
    return f"{times.binds}; {feeds}; {now}"


def forecast_dict(forecast: Forecast) -> dict[str, object]:
    """Returns the object of --json; docs/plan.md describes its keys."""
    sample, times = forecast.sample, forecast.times
    return {
        "event": "plan",
        "fingerprint": forecast.fingerprint,
        "rows": forecast.rows,
        "rows_done": forecast.done,
        "rows_failed": forecast.failed,
        "rows_to_do": forecast.to_do,
        "unit": forecast.unit,
        "units_to_do": asdict(forecast.units),
        "sample_rows": sample.rows,
        "sample_seconds": sample.seconds,
        "sample_sorted_by": sample.sorted_by,
        "remembered": forecast.remembered,
        "bytes": asdict(sample.bytes),
        "visual_tokens": asdict(sample.visual_tokens),
        "prompt_tokens": asdict(sample.prompt_tokens),
        "output_tokens": asdict(forecast.output_tokens),
        "output_basis": forecast.output_basis,
        "errors": {code: asdict(one) for code, one in sample.errors.items()},
        "error_messages": dict(sample.messages),
        "too_long": [asdict(row) for row in sample.too_long],
        "distinct_share": asdict(sample.distinct),
        "seconds": None if times is None else asdict(times.seconds),
        "start_seconds": None if times is None else asdict(times.start_s),
        "time_basis": None if times is None else times.basis,
        "stage_seconds": {}
        if times is None
        else {name: asdict(one) for name, one in times.stages.items()},
        "binds": None if times is None or not times.binds else times.binds,
        "workers_per_engine": None if times is None else times.workers_per_engine,
        "price": forecast.price,
        "price_per": f"{forecast.machine}-hour",
        "machines": forecast.machines,
        "cost": None if forecast.cost is None else asdict(forecast.cost),
        "memory": asdict(forecast.memory),
        "replicas": forecast.pools.replicas,
        "prepare_workers": forecast.pools.prepare_workers,
        "notes": list(forecast.notes),
    }


def _interval(estimate: Estimate) -> str:
    """How far the value may be off, in per cent, or nothing if it is known."""
    relative = 100 * estimate.relative
    if relative == 0 or estimate.value == 0:
        return ""
    return f" ± {relative:.2g} %" if relative < 10 else f" ± {relative:.0f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < 1e7 else _short(value)


def _short(value: float) -> str:
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.4g} {name}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f} B"


def _seconds(value: float) -> str:
    if value < 10:
        return f"{value:.2g} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.3g} h"
