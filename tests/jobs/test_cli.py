"""The command line from outside: one sentence and exit code 2 for wrong use, in no time."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.jobs.commands import parse_job, parse_run
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import KEYS

ROOT = Path(__file__).parents[2]


def mediamill(*arguments, cwd=None):
    """Runs the command as a user would; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "mediamill", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


WRONG_USE = [
    (["captoin"], "unknown command 'captoin', did you mean 'caption'?"),
    (["zzz"], "unknown command 'zzz', expected one of demo, caption, annotate, score, "),
    (["caption"], "mediamill caption: expected two paths, MANIFEST and OUTPUT, found neither"),
    (["caption", "m"], "mediamill caption: expected two paths, MANIFEST and OUTPUT, found m"),
    (
        ["caption", "a", "b", "c"],
        "mediamill caption: expected two paths, MANIFEST and OUTPUT, found",
    ),
    (
        ["caption", "m", "o"],
        "command line: found no key 'model', expected the folder of a checkpoint",
    ),
    (
        ["caption", "m", "o", "--modle", "t"],
        "mediamill caption: unknown option '--modle', did you mean",
    ),
    (
        ["caption", "m", "o", "--model"],
        "mediamill caption: argument --model: expected one argument",
    ),
    (
        ["caption", "m", "o", "--model", "t", "max_new_tokens=64"],
        "command line: unknown key 'max_new_tokens', did you mean 'generation.max_new_tokens'?",
    ),
    (
        ["caption", "m", "o", "--model", "t", "generation.max_new_tokens=many"],
        'command line: generation.max_new_tokens: found "many" (text), expected a whole number',
    ),
    (
        ["caption", "m", "o", "--model", "t", "model=u"],
        "command line: model: found model=... besides --model, expected it once",
    ),
    (
        ["caption", "m", "o", "--model", "t", "output=u"],
        "command line: output: found output=... besides OUTPUT, expected it once",
    ),
    (
        ["caption", "date=2024/m.parquet", "o", "--model", "t"],
        "mediamill caption: unknown key 'date' (did you mean 'resources.dtype'?); "
        "a path that holds '=' is written ./date=2024/m.parquet",
    ),
    (["caption", "m", "o", "--prompt", ""], 'command line: prompt: found "" (text), expected text'),
    (["caption", "--config", "none.yaml"], "none.yaml: no such job file"),
    (["run"], "mediamill run: expected one job file, found none"),
    (["run", "none.yaml"], "none.yaml: no such job file"),
    (
        ["caption", "m", "o", "--model", "t", "limit=10"],
        "mediamill caption: found limit=10, expected the option --limit 10",
    ),
    (
        ["caption", "m", "o", "--model", "t", "--sample", "0"],
        "mediamill caption: argument --sample: found 0, expected a whole number from 1",
    ),
    (["run", "none.yaml", "--model", "t"], "mediamill run: unknown option '--model'"),
    (["demo", "here"], "mediamill demo: unknown option 'here'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG_USE)
def test_wrong_use_is_a_sentence_and_exit_code_2(tmp_path, arguments, sentence):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = mediamill(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"error: {sentence}" in done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # a busy machine is not its fault
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_wrong_use_is_one_line_for_each_mistake(tmp_path):
    (tmp_path / "job.yaml").write_text("job: caption\nmodel: t\nseeed: 1\n", encoding="utf-8")
    done = mediamill("run", "job.yaml", "video.fps=fast", cwd=tmp_path)
    assert done.returncode == 2
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["error"] * 4
    assert (
        done.stderr.splitlines()[0]
        == "error: job.yaml:3: unknown key 'seeed', did you mean 'seed'?"
    )


def test_no_command_shows_the_help_and_is_wrong_use():
    done = mediamill()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: mediamill COMMAND")


@pytest.mark.parametrize("command", [[], ["caption"], ["run"], ["demo"]])
def test_help(command):
    done = mediamill(*command, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "usage: mediamill" in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())
    if command == ["run"]:
        assert all(key in done.stdout for key in KEYS)
    if command == ["caption"]:  # the keys of its kind
        others = {key for key in KEYS if key.partition(".")[0] in ("annotate", "score", "embed")}
        assert others
        assert all((f"\n{key}" in done.stdout) == (key not in others) for key in KEYS)


def test_version():
    done = mediamill("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("mediamill ")


def test_usage_needs_neither_ray_nor_torch():
    code = (
        "import sys; from mediamill.jobs.cli import main\n"
        "main(['caption', '--help']); main(['caption']);"
        "sys.exit(bool({'ray', 'torch', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["m", "o", "--model", "t", "--prompt", "a=b", "partition_by=[kind]", "seed=3"],
        ["--model", "t", "m", "partition_by=[kind]", "o", "--prompt=a=b", "seed=3"],
        ["partition_by=[kind]", "m", "--prompt", "a=b", "seed=3", "--model", "t", "o"],
        [
            "seed=3",
            "partition_by=[kind]",
            "manifest=m",
            "output=o",
            "prompt=a=b",
            "model=t",
            "--config",
            "j.yaml",
        ],
    ],
)
def test_paths_pairs_and_options_in_any_order(arguments):
    _, overrides = parse_job("caption", arguments)
    assert overrides == {
        "manifest": "m",
        "output": "o",
        "model": "t",
        "prompt": "a=b",
        "partition_by": ["kind"],
        "seed": 3,
    }


@pytest.mark.parametrize(
    "path", ["s3://b/date=1/", "/data/kind=a/", "./kind=a/x", "a-b=c.parquet", "*.parquet"]
)
def test_paths_with_an_equals_sign_are_paths(path):
    _, overrides = parse_job("caption", [path, "o", "--prompt", "Describe: it", "prompt.x=1"])
    assert overrides["manifest"] == path
    assert overrides["prompt"] == "Describe: it"
    options, _ = parse_run([path])
    assert options.config == path


def test_a_key_given_twice_is_not_guessed_at():
    with pytest.raises(JobError, match="seed: given a second time"):
        parse_job("caption", ["m", "o", "seed=1", "seed=1"])


@pytest.mark.parametrize(
    "line", ["{} >&-", "{} | head -c 0", "LC_ALL=C PYTHONUTF8=0 {}", "PYTHONIOENCODING=ascii {}"]
)
def test_streams_that_are_closed_or_have_few_letters(tmp_path, line):
    table = pa.table({"id": ["a"], "status": ["ok"], "text": ["dos · três"]})
    pq.write_table(table, tmp_path / "a.parquet")
    done = subprocess.run(
        ["bash", "-c", line.format(f"{sys.executable} -m mediamill show . a")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
