"""Renders templates/ with the values of figures.yaml into the files of this folder.

`python infra/render.py` writes them. `--check` writes nothing, prints the files that differ, and
exits with 1 if there are any.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

INFRA = Path(__file__).resolve().parent
ROOT = INFRA.parent
_SUFFIX = ".j2"
_PARTS = "_"  # prefix of templates that others include


def figures() -> dict[str, Any]:
    """Returns the values for the templates: figures.yaml, and the versions from other files."""
    values: dict[str, Any] = yaml.safe_load((INFRA / "figures.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    values["versions"] = {
        "mediamill": project["version"],
        "ray": pins["ray"],
        "torch": pins["torch"],
    }
    return values


def render(values: dict[str, Any]) -> dict[str, str]:
    """Returns the text of every file, by its path below infra/.

    Raises jinja2.UndefinedError when a template names a missing figure.
    """
    loader = jinja2.FileSystemLoader([INFRA / "templates", INFRA])
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.globals.clear()  # else a missing figure of the same name would not be noticed
    environment.filters["yaml"] = _as_yaml
    environment.filters["file"] = lambda name: (INFRA / name).read_text(encoding="utf-8")
    names = sorted(
        str(path.relative_to(INFRA / "templates"))
        for path in (INFRA / "templates").rglob(f"*{_SUFFIX}")
        if not path.name.startswith(_PARTS)
    )
    return {
        name.removesuffix(_SUFFIX): environment.get_template(name).render(values) for name in names
    }


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=100).rstrip("\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the files that differ, or prints their names with --check."""
    parser = argparse.ArgumentParser(description="Write infra's files from figures.yaml.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if one differs")
    check = parser.parse_args(argv).check
    differ = []
    for name, text in render(figures()).items():
        path = INFRA / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        differ.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for name in differ:
        print(f"infra/{name} {'differs: run python infra/render.py' if check else 'written'}")
    return 1 if check and differ else 0


if __name__ == "__main__":
    sys.exit(main())
