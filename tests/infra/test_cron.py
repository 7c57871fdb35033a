"""The crontab's line, as cron would run it: the second night does only the rows that are new."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from tests.infra.files import INFRA
from tests.pipeline.world import (
    assert_each_once,
    draw_media,
    picture_rows,
    read_output,
    write_manifest,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def crontab(home: Path) -> tuple[str, dict[str, str]]:
    """The command of the only entry, and the environment that cron would give it."""
    lines = (INFRA / "vm" / "crontab").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
    [entry] = [line for line in lines if re.match(r"[\d*]", line)]
    assert set(settings) == {"SHELL", "MEDIAMILL_HOME"}
    settings["MEDIAMILL_HOME"] = str(home)
    # Cron gives a command little more than this.
    bare = {"PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"], "LOGNAME": "mill"}
    return entry.split(maxsplit=5)[5], {**bare, **settings}


def test_the_second_night_does_only_the_new_rows(tmp_path: Path) -> None:
    media = draw_media(tmp_path / "media")
    rows = picture_rows(media, 20)
    write_manifest(tmp_path / "manifest" / "day-0.parquet", rows)
    job = {
        "job": "caption",
        "manifest": str(tmp_path / "manifest"),
        "output": str(tmp_path / "captions"),
        "model": str(CHECKPOINT),
        "prompt": CAPTION_PROMPT,
        "generation": {"max_new_tokens": 6},
        "resources": {"replicas": 1, "prepare_workers": 1, "batch_rows": 8},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    (tmp_path / "bin").mkdir()
    program = Path(sys.executable).with_name("mediamill")
    (tmp_path / "bin" / "mediamill").symlink_to(program)
    command, environment = crontab(tmp_path)
    shell = environment["SHELL"]
    assert shutil.which(shell)

    def night() -> int:
        return subprocess.run(
            [shell, "-c", command], env=environment, cwd="/", check=False, timeout=280
        ).returncode

    assert night() == 0
    before = read_output(tmp_path / "captions")
    assert_each_once(before, [row["id"] for row in rows])

    later = picture_rows(media, 12, first=20)
    write_manifest(tmp_path / "manifest" / "day-1.parquet", later)
    assert night() == 0
    after = read_output(tmp_path / "captions")
    assert_each_once(after, [row["id"] for row in rows + later])
    old = {row["id"]: row for row in before}
    assert [row for row in after if row["id"] in old] == before

    events = [
        json.loads(line)
        for line in (tmp_path / "nightly.log").read_text().splitlines()
        if line.startswith("{")
    ]
    last = [event for event in events if event.get("event") == "progress"][-1]
    assert (last["rows_skipped"], last["rows_total"], last["ok"]) == (20, 32, 12)


def test_a_night_that_is_still_running_keeps_the_next_one_away(tmp_path: Path) -> None:
    command, environment = crontab(tmp_path)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mediamill"
    program.write_text('#!/bin/sh\necho "$@" >> "$MEDIAMILL_HOME/calls"\nread word\n')
    program.chmod(0o755)
    run = ["sh", "-c", command]
    first = subprocess.Popen(run, env=environment, stdin=subprocess.PIPE, cwd="/")
    while not (tmp_path / "calls").exists():
        assert first.poll() is None
    second = subprocess.run(run, env=environment, cwd="/", check=False, timeout=60)
    assert second.returncode == 1
    first.communicate(b"on\n", timeout=60)
    assert first.returncode == 0
    assert (tmp_path / "calls").read_text() == "run job.yaml --json\n"
