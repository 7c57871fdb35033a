"""Kills an export at each of its changes of the file system in turn, and gives the command again.

Run as a program, with a folder, the form, and how many changes lie between two kills. Prints
{"kills": n}.
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

from mediamill.pipeline.export import sidecar
from mediamill.pipeline.export.export import ExportOptions, export
from tests.pipeline.export.world import add_run, error_row, picture_rows
from tests.pipeline.ledger.kill_points import CHANGES, KILLED, forked

ROWS = 7


def run(folder, target, to):
    single = f"a.{to}" if to in ("csv", "jsonl") else "d"
    rows_per_file = None if to == "sidecar" else 3
    options = {"rows_per_file": rows_per_file, "roots": (str(folder / "photos"),)}
    return export(ExportOptions(str(folder / "out"), str(target / single), to, **options))


def contents(target):
    """All files that are not the state of the export; also of a killed one, except temporaries."""
    return {
        str(path.relative_to(target)): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
        and "export" not in str(path.relative_to(target))
        and path.suffix != ".tmp"
    }


def killed(folder, target, to, number):
    steps = 0

    def hook(event, arguments):
        nonlocal steps
        if event == "open" and not (arguments[1] and set(arguments[1]) & set("wxa+")):
            return
        inside = arguments and str(arguments[0]).startswith(str(target))
        if event in (*CHANGES, "open") and inside and threading.current_thread().name != "lease":
            steps += 1
            if steps == number:
                os._exit(KILLED)

    sys.addaudithook(hook)
    run(folder, target, to)


def resumed(folder, target, to, wanted):
    seen = contents(target)
    for name, data in seen.items():
        assert name in wanted, name
        assert data == wanted[name] or name == "d/labels.json", f"{name} is torn"
    done = run(folder, target, to)
    assert (done.exported, done.left_out["error rows"]) == (ROWS - (to == "sidecar"), 1), done
    assert contents(target) == wanted


def main(folder, to, stride=1):
    sidecar._THREADS = 1  # one change at a time
    rows = picture_rows(folder / "photos", ROWS)
    add_run(folder / "out", [*rows, error_row(ROWS)])
    original, target = folder / "original", folder / "target"
    (original / "d").mkdir(parents=True)
    if to == "sidecar":
        (original / "d" / "picture-0003.txt").write_text("of someone else")
    whole = folder / "whole"
    shutil.copytree(original, whole)
    assert forked(lambda: run(folder, whole, to)) == 0
    wanted = contents(whole)
    kills = 0
    while True:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(original, target)
        step = kills * stride + 1
        code = forked(lambda: killed(folder, target, to, step))  # noqa: B023
        assert code in (0, KILLED), f"kill at change {step}: failed with {code}"
        assert forked(lambda: resumed(folder, target, to, wanted)) == 0, f"killed at {step}"
        if code == 0:
            break
        kills += 1
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
