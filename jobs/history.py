"""Prints the runs of an output, from its log: what each did, and how it ended."""

import json

from mediamill.jobs.progress.activity import working

_COLUMNS = ("started", "run", "rows", "ok", "errors", "seconds", "end")


def history(output: str, as_json: bool = False) -> int:
    """Prints one line (or one JSON object) for each run, oldest first, and returns the exit code.

    Raises JobError when the output has no log, or a damaged one.
    """
    from mediamill.pipeline.annotate.window_columns import STEPS
    from mediamill.pipeline.coordinator.run_history import past_runs

    with working("reading the log"):
        runs = past_runs(output, STEPS)
    if as_json:
        for run in runs:
            print(json.dumps(run))
        return 0
    columns = ("step", *_COLUMNS) if runs and "step" in runs[0] else _COLUMNS
    lines = [columns, *(tuple(_format(run.get(name)) for name in columns) for run in runs)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(text.rstrip())
    return 0


def _format(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ",".join(f"{key}={count}" for key, count in value.items()) or "0"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
