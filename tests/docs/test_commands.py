"""Every command of the README and of docs/ is checked by the real parser, and run in a drawn world.

By default the commands of the pages on buckets and nightly runs are run, with one job on Ray; the
other pages are slow. PROGRAMS_ELSEWHERE and COMMANDS_ELSEWHERE name what is not run here, and why.
"""

import contextlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mediamill.jobs import cli
from mediamill.jobs.commands import JOB_HELP, parse_job, parse_run
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import KEYS, SECTIONS, load_job
from tests.docs.blocks import PAGES, ROOT, Command, commands, steps
from tests.docs.world import PREPARE, draw_world, fill_bucket

ALL = [command for page in PAGES for command in commands(page)]

# A program -> why it is not run by these tests.
PROGRAMS_ELSEWHERE = {
    "crontab": "needs cron: tests/infra",
    "docker": "needs Docker",
    "export": "sets a variable of the shell",
    "kubectl": "needs a Kubernetes cluster; the files are checked in tests/infra",
    "make": "the targets are checked below; `make demo` is tests/jobs/demo",
    "pip": "needs a package index; the wheel is tests/test_package.py",
    "pytest": "tests themselves",
    "ray": "starts clusters of other machines",
    "sbatch": "needs Slurm: tests/infra",
    "scrontab": "needs Slurm: tests/infra",
}
# The same of commands of mediamill.
COMMANDS_ELSEWHERE = {
    "submit": "needs a dashboard: tests/jobs/cluster",
    "status": "needs a dashboard: tests/jobs/cluster",
    "logs": "needs a dashboard: tests/jobs/cluster",
    "stop": "needs a dashboard: tests/jobs/cluster",
    "watch": "shows a run that is at work: tests/jobs/test_watch.py",
}
# Commands of which the pages show the form, not something to run in the pages' world.
FORMS = (
    "python -m benchmarks",  # measures; that the module is there is checked
    "python infra/render.py",  # tests/infra
    "python docs/render.py",  # tests/docs/test_pages.py
    "python -m pytest",
    "mediamill run job.yaml --address auto",
    "mediamill run pictures.yaml --address auto",
)
QUICK = ("docs/buckets.md", "docs/nightly.md")
# Jobs of the quick pages that start no second model: the first one of all makes the output.
QUICK_JOBS = {"run pictures.yaml"}
# Pages whose Python is run by other tests: tests/docs/test_python.py, test_score_run.py; api.md has
# signatures.
OWN_PYTHON = {"qwen2-vl.md", "score-embed.md", "api.md"}
SLOW_COMMANDS = {*JOB_HELP, "run", "plan", "preview", "retry", "diff"}


def is_run_here(command: Command) -> bool:
    line = " ".join(command.words)
    first = command.words[0]
    return not (
        first in PROGRAMS_ELSEWHERE
        or command.name in COMMANDS_ELSEWHERE
        or any(line.startswith(form) for form in FORMS)
    )


def test_there_are_commands_of_every_kind():
    assert len(ALL) > 80
    assert {command.name for command in ALL} >= set(cli._COMMANDS) - {"demo"}
    unknown = {c.words[0] for c in ALL} - {"mediamill", "python", *PROGRAMS_ELSEWHERE}
    assert not unknown, f"neither checked nor named in PROGRAMS_ELSEWHERE: {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_have_known_options_and_keys(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        if command.words[0] == "make":
            assert re.search(
                rf"^{command.words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE
            )
        elif command.words[:2] == ("python", "-m"):
            module = command.words[2]
            assert module == "pytest" or find_spec(module), command
        elif command.words[0] == "python":
            assert (ROOT / command.words[1]).exists(), command
        elif command.name:
            check_keys(command)
            check_options(command, capsys)


def check_keys(command: Command) -> None:
    """Every key=value has a known key; those of a job make a valid job with the required keys."""
    for word in command.words[2:]:
        if re.match(r"[a-z_]+(\.[a-z_]+)*=", word):
            assert word.partition("=")[0] in {*KEYS, *SECTIONS}, command
    rest = list(command.words[2:])
    defaults = {"manifest": "m", "output": "o", "model": "x", "prompt": "p"}
    try:
        if command.name in JOB_HELP:
            _, given = parse_job(command.name, rest)
            load_job(None, defaults | given, job=command.name)
        elif command.name == "run":
            _, given = parse_run(rest)
            load_job(None, defaults | {"job": "caption"} | given)
    except JobError as error:
        raise AssertionError(f"{command}: {error}") from None


def check_options(command: Command, capsys) -> None:
    """The parser of the command takes all words: it stumbles over an unknown option at the end."""
    assert command.name in cli._COMMANDS, command
    words = command.words[1:]
    if "--" in words:  # ids that begin with a dash
        words = words[: words.index("--")]
    with contextlib.suppress(SystemExit):
        assert cli.main([*words, "--no-such-option"]) == 2, command
    assert "unknown option '--no-such-option'" in capsys.readouterr().err, command


@pytest.fixture(scope="module")
def world(tmp_path_factory, s3, ray_cluster):
    """A folder with the pictures, videos, tables, models and job files of the pages."""
    folder = tmp_path_factory.mktemp("world")
    draw_world(folder)
    return folder, {path.name for path in folder.iterdir()}


@pytest.fixture
def begin_page(world, monkeypatch):
    """Makes the world as it is before the first command of a page."""
    folder, drawn = world
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BROWSER", "true")  # opens nothing
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def begin(page: str) -> None:
        for path in folder.iterdir():
            if path.name not in drawn:
                subprocess.run(["rm", "-r", path], check=True)
        fill_bucket(folder)
        PREPARE.get(page, lambda: None)()

    return begin


def run(command: Command, capsys) -> None:
    if command.words[0] == "python":
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *command.words[1:]], env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return
    words = list(command.words[1:])
    if command.name in JOB_HELP or command.name == "run":
        words += ["resources.replicas=1", "resources.prepare_workers=1"]
    code = cli.main(words)
    allowed = (0, 3, 1) if command.name == "show" and "--where" in words else (0, 3)
    assert code in allowed, (str(command), capsys.readouterr().err[-2000:])


@pytest.mark.timeout(900)
def test_the_quick_commands_of_some_pages(begin_page, capsys):
    """Lists, checks, exports and compactions, on the output of one job."""
    begin_page("docs/buckets.md")
    done = set()
    for page in QUICK:
        for command in commands(ROOT / page):
            line = " ".join(command.words[1:])
            is_slow = command.name in SLOW_COMMANDS and line not in QUICK_JOBS
            if not is_slow and is_run_here(command):
                run(command, capsys)
                done.add(command.name)
    assert done >= {"manifest", "run", "history", "check", "compact", "export"}
    assert Path("captions.jsonl").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_commands_and_python_of_a_page(page, begin_page, capsys):
    """In order, as a reader would run them."""
    has_own_test = page.name in OWN_PYTHON
    chosen = [
        step
        for step in steps(page)
        if (is_run_here(step) if isinstance(step, Command) else not has_own_test)
    ]
    if not chosen:
        pytest.skip("nothing to run here")
    begin_page(str(page.relative_to(ROOT)))
    for step in chosen:
        if isinstance(step, Command):
            run(step, capsys)
        else:
            exec(compile(step, str(page), "exec"), {})  # noqa: S102 - our own page
