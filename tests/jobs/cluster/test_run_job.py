"""A submitted job runs with the interpreter that runs Ray, or says what that one lacks."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from mediamill.jobs.cluster import on_cluster
from mediamill.jobs.cluster.on_cluster import run_job

ROOT = Path(__file__).parents[3]
FOLDER = Path(on_cluster.__file__).parent
PATH = "/usr/bin:/bin"
# As Ray starts a worker, which starts a shell: the raylet, the worker, `sh -c`, `sh run_job.sh`.
RAYLET = (
    "import subprocess, sys; "
    "sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
)
WORKER = "import subprocess, sys; sys.exit(subprocess.run('sh run_job.sh', shell=True).returncode)"


@pytest.fixture
def folder(tmp_path):
    """A folder as Ray unpacks it on the cluster, with a program that tells its interpreter."""
    shutil.copy(FOLDER / "run_job.sh", tmp_path)
    (tmp_path / "run_job.py").write_text("import sys; print('runs', sys.executable); sys.exit(3)")
    return tmp_path


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", RAYLET, WORKER, *arguments],
        cwd=folder,
        env={"PATH": PATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_interpreter_of_the_raylet_runs_the_job(folder):
    named = f"--python_worker_command={sys.executable} /x/ray/_private/workers/setup_worker.py a"
    java = "--java_worker_command=/usr/bin/java x"
    ended = run(folder, java, named, "--x=1")
    assert (ended.stdout, ended.returncode) == (f"runs {sys.executable}\n", 3), ended.stderr


@pytest.mark.parametrize("named", ["--x=1", "--python_worker_command=/nowhere/python x"])
def test_without_a_raylet_python_of_the_path_runs_it(folder, named):
    expected = shutil.which("python3", path=PATH) or shutil.which("python", path=PATH)
    ended = run(folder, named)
    if expected is None:
        assert ended.stderr.startswith("error: no Python was found on ")
        assert ended.returncode == 2
    else:
        assert ended.stdout.startswith("runs ")
        assert sys.executable not in ended.stdout


def test_the_script_is_sound():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = [str(shellcheck), "--severity=style", str(FOLDER / "run_job.sh")]
    subprocess.run(command, check=True)


def test_the_packages_that_are_looked_for_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[>=<]", one)[0] for one in project["dependencies"]}
    assert {package.strip("'") for package in run_job.NEEDED.values()} == names
    assert all(find_spec(name) for name in run_job.NEEDED)


def test_an_interpreter_without_packages_says_which(tmp_path):
    """One with the standard library alone, then one that has been sent mediamill."""
    shutil.copy(FOLDER / "run_job.py", tmp_path)
    code = "import runpy; runpy.run_path('run_job.py', run_name='__main__')"
    command = [sys.executable, "-I", "-S", "-c", code]

    def told(command):
        ended = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        return ended.stderr

    sentence = told(command)
    assert sentence.startswith(f"error: {sys.executable}, which runs Ray on ")
    assert "does not have mediamill: install it there; --code alone would not do" in sentence
    (tmp_path / "mediamill").mkdir()
    command[-1] = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); " + command[-1]
    sentence = told(command)
    assert "lacks packages that mediamill needs, and --code uploads only mediamill" in sentence
    assert sentence.rstrip().endswith(
        f"{sys.executable} -m pip install {' '.join(run_job.NEEDED.values())}"
    )
