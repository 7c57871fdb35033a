"""The wheel holds one import package, and users' own code and files work beside it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mediamill.model.tiny import CHECKPOINT
from tests.pipeline.world import draw_media, picture_rows, read_output, write_manifest

ROOT = Path(__file__).parent.parent
FOLDERS = ("schemas", "model", "pipeline", "jobs")
# Of libraries and of Python itself; "types" and some more break any program that runs with -m.
OTHERS = (
    *("PIL", "av", "fsspec", "jinja2", "numpy", "pandas", "pyarrow", "pydantic", "ray"),
    *("safetensors", "tokenizers", "torch", "yaml"),
    *("argparse", "asyncio", "copy", "json", "logging", "queue", "random", "socket", "string"),
    *("struct", "subprocess", "tempfile", "threading", "uuid"),
)
BUILD = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
SCRIPT = """
from mediamill.pipeline.run import run
from mediamill.schemas.job import load_job

if __name__ == "__main__":
    summary = run(load_job("job.yaml"), address={address!r})
    print(summary.rows, summary.ok)
"""
RAISES = "raise RuntimeError('the user\\'s own {name} was imported')\n"
COMMAND = str(Path(sys.executable).parent / "mediamill")
TYPED = """
from mediamill.model.engine import Engine
from mediamill.schemas.job import load_job

engine: Engine = Engine.load("folder")
reveal_type(load_job("job.yaml"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", *FOLDERS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    built = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    [path] = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_one_package_and_all_of_its_files(wheel):
    names = set(wheel.namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"mediamill"}
    sources = {
        f"mediamill/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names
    assert {"mediamill/py.typed", "mediamill/__init__.py", "mediamill/__main__.py"} <= names


def test_a_users_script_is_type_checked_against_it(tmp_path):
    (tmp_path / "script.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "script.py", "--cache-dir", "cache"]
    # The folder of the package is on the path here; an installed wheel is found without it.
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    checked = subprocess.run(
        [*command, "--follow-imports", "silent"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'Revealed type is "mediamill.schemas.job_config.JobConfig"' in checked.stdout
    assert "error:" not in checked.stdout, checked.stdout


@pytest.mark.timeout(600)
def test_modules_of_the_users_own_are_not_imported(tmp_path, ray_cluster):
    """A folder with names of ours, of libraries and of Python; its modules raise when imported."""
    for name in FOLDERS:
        path = tmp_path / (f"{name}/__init__.py" if name == "schemas" else f"{name}.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(RAISES.format(name=name))
    rows = picture_rows(draw_media(tmp_path / "media"), 3)
    write_manifest(tmp_path / "manifest.parquet", rows)
    (tmp_path / "job.yaml").write_text(
        f"job: caption\nmanifest: manifest.parquet\noutput: from-python\nmodel: {CHECKPOINT}\n"
        "prompt: What is it?\ngeneration: {max_new_tokens: 4}\n"
    )
    (tmp_path / "script.py").write_text(SCRIPT.format(address=ray_cluster))
    outputs = {}
    for output, others, command in (
        ("from-python", (), [sys.executable, "script.py"]),
        ("from-command", (*OTHERS, "types", "functools"), [COMMAND, "run", "job.yaml"]),
    ):
        for name in others:
            (tmp_path / f"{name}.py").write_text(RAISES.format(name=name))
        ended = subprocess.run(
            [*command, *([f"output={output}"] if others else [])],
            cwd=tmp_path,
            env={**os.environ, "RAY_ADDRESS": ray_cluster},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        outputs[output] = [(row["id"], row["text"]) for row in read_output(tmp_path / output)]
    assert len(outputs["from-python"]) == 3
    assert outputs["from-python"] == outputs["from-command"]


def test_python_with_m_imports_nothing_of_the_current_folder(tmp_path):
    for name in (*FOLDERS, *OTHERS):
        (tmp_path / f"{name}.py").write_text(RAISES.format(name=name))
    for arguments, code in ((["--version"], 0), (["caption", "m", "o", "--model", "built-in"], 2)):
        ended = subprocess.run(
            [sys.executable, "-m", "mediamill", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == code, ended.stderr
        assert "was imported" not in ended.stderr
