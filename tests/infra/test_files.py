"""The other files of infra/: rendered from the figures, and sound each in its own way."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import render
from mediamill.pipeline.ray_cluster.metrics import EXPORTED
from tests.infra.files import INFRA

ROOT = INFRA.parent
FIGURES = render.figures()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = sorted(
    path
    for path in (path for path in INFRA.rglob("*") if path.is_file())
    if path.suffix in {".sh", ".sbatch"}
)


def test_the_files_are_what_the_figures_give() -> None:
    texts = render.render(FIGURES)
    assert len(texts) >= 11
    differ = [name for name, text in texts.items() if (INFRA / name).read_text() != text]
    assert not differ, f"run python infra/render.py: {differ}"


def test_every_figure_is_used_and_a_missing_one_is_an_error() -> None:
    texts = render.render(FIGURES)
    for name in FIGURES:
        if name == "kubernetes":
            continue  # the tests' own
        with pytest.raises(Exception, match=name):
            render.render({key: value for key, value in FIGURES.items() if key != name})
    changed = render.render({**FIGURES, "image": "elsewhere/mill"})
    assert {name for name in texts if texts[name] != changed[name]} == {
        "kuberay/cronjob.yaml", "kuberay/raycluster.yaml", "kuberay/raycronjob.yaml",
        "kuberay/rayjob.yaml", "vm/cluster.yaml",
    }  # fmt: skip


def test_the_check_names_what_differs(tmp_path: Path) -> None:
    copy = tmp_path / "infra"
    shutil.copytree(INFRA, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    crontab = copy / "vm" / "crontab"
    crontab.write_text(crontab.read_text().replace("30 1", "30 2"))

    def run(*arguments: str) -> tuple[int, str]:
        finished = subprocess.run(
            [sys.executable, str(copy / "render.py"), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return finished.returncode, finished.stdout

    assert run("--check") == (1, "infra/vm/crontab differs: run python infra/render.py\n")
    assert run() == (0, "infra/vm/crontab written\n")
    assert run("--check") == (0, "")


def test_versions_are_those_of_the_project() -> None:
    assert FIGURES["versions"]["mediamill"] == PROJECT["version"]
    found = {
        word
        for path in INFRA.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
        for word in re.findall(r"ray(?:\[[a-z,]*\])?(?:==|Version: )(\d[\d.]*)", path.read_text())
    }
    assert found == {FIGURES["versions"]["ray"]}
    lowest = PROJECT["requires-python"].removeprefix(">=")
    minor = [int(one) for one in FIGURES["python"].split(".")[:2]]
    assert minor >= [int(one) for one in lowest.split(".")]


def test_no_image_is_taken_by_a_tag_that_moves() -> None:
    texts = [(INFRA / "Dockerfile").read_text()]
    texts += [path.read_text() for path in INFRA.rglob("*.yaml")]
    assert not [text for text in texts if ":latest" in text]
    bases = re.findall(r"^FROM (\S+)", texts[0], re.MULTILINE)
    assert [base for base in bases if "base" not in base] == [
        f"python:{FIGURES['python']}-slim-{FIGURES['debian']}"
    ]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(path: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([str(shellcheck), "--severity=style", str(path)], check=True)
    assert path.stat().st_mode & 0o111


def test_the_batch_script_gives_the_job_its_grace() -> None:
    text = (INFRA / "slurm" / "mediamill.sbatch").read_text()
    [seconds] = re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", text, re.MULTILINE)
    assert int(seconds) > FIGURES["job"]["resources"]["grace_s"] + FIGURES["stop_margin_s"]
    assert "\n#SBATCH --requeue\n" in text
    # No option of the batch system may come after the first command: it would be a comment.
    assert text.rindex("#SBATCH") < text.index("\nset -uo pipefail")


def test_schedules_agree() -> None:
    for name in ("slurm/scrontab", "vm/crontab"):
        [line] = entries(INFRA / name)
        assert line.startswith(FIGURES["schedule"] + " ")
        assert "%" not in line  # cron ends the command there


def entries(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if re.match(r"[\d*]", line)]


def test_the_launcher_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((INFRA / "vm" / "cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] == len(FIGURES["vm"]["workers"])
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in config[commands][-1]
    [wait_s] = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", config["head_start_ray_commands"][-1])
    assert int(wait_s) > FIGURES["job"]["resources"]["grace_s"]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((INFRA / "grafana" / "mediamill.json").read_text())
    return found


def test_the_dashboard_is_sound() -> None:
    found = dashboard()
    variables = {one["name"]: one for one in found["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels})
    taken = set()
    for panel in panels:
        assert panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            query = target["expr"]
            assert query.count("(") == query.count(")")
            assert query.count("{") == query.count("}") == query.count('SessionName=~"$session"')
        box = panel["gridPos"]
        cells = {(box["x"] + x, box["y"] + y) for x in range(box["w"]) for y in range(box["h"])}
        assert box["x"] + box["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_the_dashboard_shows_every_figure_that_the_pipeline_exports() -> None:
    queries = " ".join(
        target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]
    )
    ours = set(re.findall(r"ray_(mediamill_\w+)", queries))
    assert ours == set(EXPORTED)
    guide = (ROOT / "docs" / "cluster.md").read_text()
    assert all(f"`ray_{name}" in guide for name in ours)


def test_the_policy_allows_what_is_used_and_no_more() -> None:
    policy = json.loads((INFRA / "iam" / "policy.json").read_text())
    job = FIGURES["job"]
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not [action for action in statement["Action"] if "*" in action]
        for resource in statement["Resource"]:
            place = resource.removeprefix("arn:aws:s3:::")
            if any("Object" in action for action in statement["Action"]):
                assert re.fullmatch(r"[\w.-]+/[\w./-]+/\*", place)
            else:
                assert re.fullmatch(r"[\w.-]+", place)
                assert statement["Condition"]["StringLike"]["s3:prefix"]
    changes = {
        resource
        for statement in policy["Statement"]
        if {"s3:PutObject", "s3:DeleteObject"} & set(statement["Action"])
        for resource in statement["Resource"]
    }
    assert changes == {"arn:aws:s3:::" + job["output"].removeprefix("s3://") + "*"}
    assert len({statement["Sid"] for statement in policy["Statement"]}) == len(policy["Statement"])
