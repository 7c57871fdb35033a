"""What the tests of infra/ share: its files, the objects in them, and their pods."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

INFRA = Path(__file__).parents[2] / "infra"
KUBERAY = INFRA / "kuberay"
MANIFESTS = sorted(KUBERAY.glob("*.yaml"))
SCHEMAS = Path(__file__).parent / "schemas"


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """Every object of every manifest, by kind and name."""
    found = {}
    for path in MANIFESTS:
        for one in documents(path):
            key = one["kind"], one["metadata"]["name"]
            assert key not in found, f"{key} is there twice"
            found[key] = one
    return found


def pods(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's spec below a value, with the path to it."""
    if isinstance(value, dict):
        if "containers" in value:
            yield path, value
        for name, inner in value.items():
            yield from pods(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from pods(inner, f"{path}[{number}]")


def clusters() -> dict[str, dict[str, Any]]:
    """The spec of the RayCluster in each manifest that has one."""
    found = objects()
    return {
        "RayJob": found["RayJob", "mediamill"]["spec"]["rayClusterSpec"],
        "RayCluster": found["RayCluster", "mediamill"]["spec"],
        "RayCronJob": found["RayCronJob", "mediamill"]["spec"]["jobTemplate"]["rayClusterSpec"],
    }


def bytes_of(quantity: str) -> int:
    for unit, size in (("Gi", 1024**3), ("Mi", 1024**2)):
        if quantity.endswith(unit):
            return int(quantity.removesuffix(unit)) * size
    return int(quantity)
