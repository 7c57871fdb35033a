"""The image: what its file says, and its steps in a clean environment.

Nothing here builds an image: that takes a container engine. The steps that only a container can
take (apt-get, useradd) are left out.
"""

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.infra.files import INFRA

ROOT = INFRA.parent
TEXT = (INFRA / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """The file's instructions and what they say, continued lines joined."""
    lines = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines()]


def steps() -> list[tuple[str, str]]:
    """COPY and RUN of the last stage, without what mounts the secret."""
    found = instructions()
    last = max(place for place, (word, _) in enumerate(found) if word == "FROM")
    return [
        (word, re.sub(r"--mount=\S+\s*", "", said).strip())
        for word, said in found[last:]
        if word in ("COPY", "RUN")
    ]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().split()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*"
    sources = {name for word, said in steps() if word == "COPY" for name in said.split()[:-1]}
    assert sources == kept
    assert all((ROOT / name).exists() for name in sources)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= sources
    assert any(fnmatch("model/__pycache__", pattern) for pattern in ignored[1:])


def test_everything_that_pip_installs_is_pinned() -> None:
    installs = [said for word, said in steps() if word == "RUN" and "pip install" in said]
    assert len(installs) == 2
    assert all("pip install -c constraints.txt " in said for said in installs)
    words = " ".join(said for word, said in instructions() if word == "RUN")
    assert "://" not in words
    assert "--index-url" not in words
    assert TEXT.count("--mount=type=secret,id=pipconf") == len(installs)


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    found = instructions()
    [user] = [said for word, said in found if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    after = [word for word, _ in found[found.index(("USER", user)) :]]
    assert "RUN" not in after
    assert "COPY" not in after


def test_a_torch_of_the_other_variant_stops_the_build() -> None:
    import torch

    here = "cuda" if torch.version.cuda else "cpu"
    [check] = [said for word, said in steps() if "torch.version.cuda" in said]
    for variant in ("cpu", "cuda"):
        ended = subprocess.run(
            ["sh", "-c", check],
            env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "VARIANT": variant},
            check=False,
            capture_output=True,
            text=True,
        )
        assert (ended.returncode == 0) == (variant == here), ended.stderr
        assert variant == here or f"found torch for {here}, expected one for" in ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_build_the_package_in_a_clean_environment(tmp_path: Path) -> None:
    environment, source = tmp_path / "environment", tmp_path / "src"
    source.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    programs = environment / "bin"
    outside = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    inside = {**outside, "PATH": f"{programs}:/usr/bin:/bin", "PIP_NO_CACHE_DIR": "1"}
    inside["VARIANT"] = variant_here()
    for word, said in steps():
        if word == "COPY":
            for name in said.split()[:-1]:
                copy(ROOT / name, source / name)
        elif "useradd" not in said:
            subprocess.run(["sh", "-c", said], cwd=source, env=inside, check=True)

    def say(*command: str) -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=inside, check=True, capture_output=True, text=True
        ).stdout

    pins = set((ROOT / "constraints.txt").read_text().split("\n"))
    frozen = say("pip", "list", "--format=freeze").lower().replace("_", "-").splitlines()
    ours = {"pip", "setuptools", "wheel", "mediamill"}
    # A build of torch for one kind of machine says so behind a plus.
    loose = [
        one
        for one in frozen
        if one.partition("==")[0] not in ours and one.partition("+")[0] not in pins
    ]
    assert not loose
    assert "mediamill" in say("mediamill", "--version")
    assert "2." in say("ray", "--version")
    files = say(
        "python", "-c", "import mediamill.model.tiny as t; print(t.CHECKPOINT.is_dir(), t.__file__)"
    )
    assert files.startswith("True")
    assert str(environment) in files


def variant_here() -> str:
    import torch

    return "cuda" if torch.version.cuda else "cpu"


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
