"""The rules that hold the house together: who may import whom, and what no file may contain."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "model", "pipeline", "jobs")

# folder -> what it may import of ours beside itself, and what it must never import at all
ARROWS = {
    "schemas": (set(), {"ray", "torch", "transformers", "pandas"}),
    "model": (set(), {"ray", "pyarrow", "transformers", "pandas", "pydantic"}),
    "pipeline": ({"schemas", "model"}, {"transformers"}),
    "jobs": ({"schemas", "model", "pipeline"}, {"transformers"}),
}
# The folders and files of a top folder, lowest first: an import goes to the same or a lower one.
_MODEL_ORDER = """errors urls inputs checkpoint media sampling text generation layers families
requests processor describe weights engine_core engine chat tensor_parallel tiny"""
_PIPELINE_ORDER = """faults records row_values storage ray_cluster fetching decoding replica
ledger ladder manifest quality retry sources tasks stages checkpoint fingerprint output_header plan
outcome coordinator output_rules compact worker_stages run annotate export inspect forecast preview
diff"""
ORDER = {"model": _MODEL_ORDER.split(), "pipeline": _PIPELINE_ORDER.split()}
MAX_LINES = 350


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at the top or lazily, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; write the whole name"
            # `from pipeline import write` imports mediamill.pipeline.stages.write.
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call as its dotted name (`torch.load`), with its node."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def stored_files() -> list[Path]:
    """Every file of the repository, or without git every file that is not a tool's."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        ours = (*PACKAGES, "src", "tests", "benchmarks", "infra", "docs", ".ci")
        found = [path for folder in ours for path in (ROOT / folder).rglob("*")]
        found += [path for path in ROOT.iterdir() if path.is_file()]
        return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)
    names = [name for name in listed.decode().split("\0") if name]
    return sorted(path for name in names if (path := ROOT / name).is_file())


def in_fresh_interpreter(code: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr


def ours(name: str) -> str:
    """An imported name without `mediamill.`, or an empty string for other packages."""
    return name.removeprefix("mediamill.") if name.startswith("mediamill.") else ""


@pytest.mark.parametrize("folder", PACKAGES)
def test_imports_run_one_way(folder: str) -> None:
    allowed, banned = ARROWS[folder]
    wrong = []
    for path in python_files(folder):
        for name, line in imports(path):
            top = ours(name).partition(".")[0]
            if name.partition(".")[0] in banned | {"tests", "benchmarks"} or (
                top in PACKAGES and top not in allowed | {folder}
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ORDER)
def test_no_import_climbs_to_a_higher_folder(folder: str) -> None:
    """ORDER lists the folders and files of `folder`, lowest first: each imports lower ones only."""
    order = ORDER[folder]
    stems = {path.stem for path in (ROOT / folder).iterdir() if any(path.rglob("*.py"))}
    stems |= {path.stem for path in (ROOT / folder).glob("*.py")}
    assert stems - {"__init__", "__main__", "__pycache__"} == set(order)
    wrong = []
    for path in python_files(folder):
        place = path.relative_to(ROOT / folder).with_suffix("").parts[0]
        for name, line in imports(path):
            top, _, rest = ours(name).partition(".")
            target = rest.partition(".")[0]
            if top != folder or target not in order or place not in order:
                continue
            if order.index(target) > order.index(place):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_stages_never_import_one_another() -> None:
    wrong = []
    for path in python_files("pipeline/stages"):
        for name, line in imports(path):
            package, _, stage = name.partition("pipeline.stages.")
            if package == "mediamill." and stage.partition(".")[0] != path.stem:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_folders_by_their_own_names() -> None:
    """`model`, `pipeline`, `jobs` and `schemas` are names of our users' own files."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in python_files(*PACKAGES, "src", "tests", "benchmarks", "infra")
        for name, line in imports(path)
        if name.partition(".")[0] in PACKAGES
    ]
    programs = re.compile(rf"\b(?:-m|from|import) (?:{'|'.join(PACKAGES)})\.\w")
    for path in stored_files():
        if path.suffix in (".md", ".py", ".sh", ".yaml", ".j2", ".toml", ".service", ""):
            lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            wrong += [
                f"{path.relative_to(ROOT)}:{n}: {line}"
                for n, line in lines
                if programs.search(line)
            ]
    assert not wrong, "\n".join(wrong)


def test_the_arrow_test_sees_lazy_imports(tmp_path: Path) -> None:
    path = tmp_path / "late.py"
    path.write_text("def f():\n    from mediamill.pipeline import run\n    import ray.data\n")
    assert {name for name, _ in imports(path)} == {
        "mediamill.pipeline",
        "mediamill.pipeline.run",
        "ray.data",
    }


@pytest.mark.parametrize("folder", ["model", "schemas"])
def test_modules_import_without_what_they_must_not_need(folder: str) -> None:
    names = [
        "mediamill." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in python_files(folder)
    ]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    in_fresh_interpreter(f"""
import importlib, sys
class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ARROWS[folder][1]!r}:
            raise ImportError(name + " is imported, and must not be needed here")
sys.meta_path.insert(0, Closed())
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "triton":  # only some builds of torch bring it
            raise
""")


def test_files_stay_small() -> None:
    sizes = {
        path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*PACKAGES)
    }
    large = {str(path.relative_to(ROOT)): n for path, n in sizes.items() if n > MAX_LINES}
    assert not large, f"more than {MAX_LINES} lines: {large}"


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files(*PACKAGES)
        if path.stat().st_size
        and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_only_the_command_line_reads_the_environment() -> None:
    # cluster.py gives Ray its settings: Ray takes some of them from the environment alone.
    allowed = {ROOT / "jobs" / name for name in ("cli.py", "start.py")}
    allowed.add(ROOT / "pipeline" / "ray_cluster" / "cluster.py")
    wrong = []
    for path in set(python_files(*PACKAGES)) - allowed:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name in {"os.environ", "os.environb", "os.getenv"}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} uses {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_unpickled() -> None:
    modules = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    loads = {"torch.load", "pd.read_pickle", "pandas.read_pickle"}
    wrong = []
    for path in python_files(*PACKAGES):
        for name, line in imports(path):
            if name.partition(".")[0] in modules or name in loads:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
        for name, call in calls(path):
            allowed = any(one.arg == "allow_pickle" for one in call.keywords)
            if name in loads or allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{call.lineno} calls {name}")
    assert not wrong, "\n".join(wrong)


def test_no_file_names_a_package_index_or_a_path_of_one_machine() -> None:
    # The words are put together here, so that this file does not hold what it looks for.
    hosts = "|".join(("py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.org"))
    index = re.compile(rf"(?:{hosts}|https?://[^\s\"'<>]*/(?:simple|packages|whl)/)")
    machine = re.compile(r"(?<![\w./~$}{-])/(?:root|work|farm|mnt|home/\w+|Users/\w+)/")
    wrong = []
    for path in stored_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, start=1):
            if index.search(line) or machine.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_constraints_pin_every_dependency_by_version_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    unclear = [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)]
    assert not unclear
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {
        re.split(r"[\[<>=!~ ]", one)[0].lower().replace("_", "-")
        for group in groups
        for one in group
    }
    assert names <= {pin.partition("==")[0] for pin in pins}


def test_the_readme_names_only_make_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, flags=re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z]+)", readme)) | set(
        re.findall(r"^make ([a-z]+)", readme, flags=re.MULTILINE)
    )
    assert named
    assert named <= targets
