"""The Kubernetes files: against the published schemas, and against what a cluster would do."""

import copy
import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mediamill.schemas.job import load_job
from tests.infra import crd
from tests.infra.files import (
    INFRA,
    KUBERAY,
    MANIFESTS,
    SCHEMAS,
    bytes_of,
    clusters,
    documents,
    objects,
    pods,
)

FIGURES = yaml.safe_load((INFRA / "figures.yaml").read_text())
OBJECTS = objects()
PODS = [
    (f"{kind}/{name}{path}", pod)
    for (kind, name), one in OBJECTS.items()
    for path, pod in pods(one.get("spec", {}))
]
CRDS = {
    "RayJob": "ray.io_rayjobs.yaml.gz",
    "RayCluster": "ray.io_rayclusters.yaml.gz",
    "RayCronJob": "ray.io_raycronjobs.yaml.gz",
}


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    return {kind: crd.load_schema(SCHEMAS / name) for kind, name in CRDS.items()}


def own_mistakes(one: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    return list(crd.mistakes(one, schemas[one["kind"]]))


def test_every_kind_is_there() -> None:
    assert set(CRDS) | {"CronJob", "ConfigMap", "ServiceAccount", "Role", "RoleBinding"} == {
        kind for kind, _ in OBJECTS
    }


@pytest.mark.parametrize("kind", sorted(CRDS))
def test_ray_objects_keep_to_their_schema(kind: str, schemas: dict[str, Any]) -> None:
    assert not own_mistakes(OBJECTS[kind, "mediamill"], schemas)


@pytest.mark.parametrize(
    "key", sorted(key for key in OBJECTS if key[0] not in CRDS), ids=lambda key: "-".join(key)
)
def test_core_objects_keep_to_their_schema(key: tuple[str, str]) -> None:
    kubernetes_validate.validate(OBJECTS[key], FIGURES["kubernetes"], strict=True)


@pytest.mark.parametrize("where", sorted(clusters()))
def test_pods_inside_ray_objects_keep_to_the_core_schema(where: str) -> None:
    """The CRDs know the fields of a pod, but not which values of them Kubernetes takes."""
    for _, pod in pods(clusters()[where]):
        wrapped = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": pod}
        kubernetes_validate.validate(wrapped, FIGURES["kubernetes"], strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.backofLimit", 3),
        ("spec.backoffLimit", "3"),
        ("spec.deletionStrategy.deletionRules.0.condition.ttlSeconds", -1),
        ("spec.submissionMode", 7),
        ("spec.deletionStrategy.deletionRules.0.policy", "DeleteAll"),
        ("spec.deletionStrategy.deletionRules.0.condition.ttl", 5),
        ("spec.rayClusterSpec.authOptions.mode", "on"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.imagePullPolice", "Always"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env.0.value", 75),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.volumes.0.emptyDir.size", "2Gi"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.rayStartParams.object-store-memory", 5),
        ("metadata.label", {}),
        ("sped", {}),
    ],
)
def test_the_walker_sees_a_wrong_field(path: str, value: object, schemas: dict[str, Any]) -> None:
    one = copy.deepcopy(OBJECTS["RayJob", "mediamill"])
    place: Any = one
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    [sentence] = own_mistakes(one, schemas)
    assert last in sentence.partition(":")[0]


def test_the_walker_sees_what_is_missing(schemas: dict[str, Any]) -> None:
    one = copy.deepcopy(OBJECTS["RayCluster", "mediamill"])
    del one["spec"]["workerGroupSpecs"][0]["groupName"]
    one["spec"]["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["ports"] = [
        {"containerPort": 80},
        {"containerPort": 80},
    ]
    sentences = own_mistakes(one, schemas)
    assert [sentence.partition(": ")[2][:15] for sentence in sentences] == [
        "lacks groupName",
        "found the same ",
    ]


@pytest.mark.parametrize(("where", "pod"), PODS, ids=[where for where, _ in PODS])
def test_pods_are_bounded_pinned_and_not_root(where: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    version = f":{kubernetes_version()}-"
    for container in pod["containers"] + pod.get("initContainers", []):
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][bound])
        assert version in container["image"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        shared = [
            bytes_of(volume["emptyDir"]["sizeLimit"])
            for volume in pod.get("volumes", ())
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        ]
        assert sum(shared) < bytes_of(container["resources"]["limits"]["memory"])
    named = {volume["name"] for volume in pod.get("volumes", ())}
    used = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", ())}
    assert used == named


def kubernetes_version() -> str:
    from infra.render import figures

    version: str = figures()["versions"]["mediamill"]
    return version


@pytest.mark.parametrize("where", sorted(clusters()))
def test_a_cluster_outlives_its_jobs_drain(where: str) -> None:
    spec = clusters()[where]
    grace_s = job_file().resources.grace_s
    head = spec["headGroupSpec"]["template"]["spec"]
    stop_s = int(environment(head)["RAY_JOB_STOP_WAIT_TIME_S"])
    wait_s = int(head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert grace_s < stop_s <= wait_s < head["terminationGracePeriodSeconds"]
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        drain_s = int(environment(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert grace_s < stop_s < drain_s < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("where", sorted(clusters()))
def test_a_cluster_has_what_its_stages_ask_for(where: str) -> None:
    spec = clusters()[where]
    assert spec["rayVersion"] == pinned("ray")
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpus = {}
    for group in spec["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        # The pools are sized by what is there at the start; none would be a wrong job.
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        count = limits.get("nvidia.com/gpu")
        assert requests.get("nvidia.com/gpu") == count
        gpus[group["groupName"]] = count
        assert container["image"].endswith("-cuda" if count else "-cpu")
        keys = {one["key"] for one in group["template"]["spec"]["tolerations"]}
        assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= keys
        assert ("nvidia.com/gpu" in keys) == bool(count)
        store = int(group["rayStartParams"]["object-store-memory"])
        [shared] = [
            bytes_of(volume["emptyDir"]["sizeLimit"])
            for volume in group["template"]["spec"]["volumes"]
            if volume.get("emptyDir", {}).get("medium") == "Memory"
        ]
        assert store < shared
    assert gpus == {"cpu-decode": None, "gpu-generate": "1"}


@pytest.mark.parametrize("where", sorted(clusters()))
def test_copies_of_models_lie_on_a_volume_and_not_on_the_containers_disk(where: str) -> None:
    cache = job_file().resources.cache
    for group in clusters()[where]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        [volume] = [
            one["name"]
            for one in container["volumeMounts"]
            if cache.startswith(one["mountPath"] + "/")
        ]
        [found] = [one for one in pod["volumes"] if one["name"] == volume]
        assert "medium" not in found["emptyDir"]


def test_what_is_named_is_there() -> None:
    """Config maps and accounts by name; secrets are the user's own, and may be missing."""
    for where, pod in PODS:
        for volume in pod.get("volumes", ()):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in OBJECTS, where
        if "serviceAccountName" in pod:
            assert ("ServiceAccount", pod["serviceAccountName"]) in OBJECTS, where
        for container in pod["containers"]:
            for source in container.get("envFrom", ()):
                assert source["secretRef"]["optional"] is True
            words = str(container).lower()
            assert "aws_secret" not in words
            assert "auth_token" not in words


def test_rayjobs_end_what_they_began() -> None:
    for spec in (
        OBJECTS["RayJob", "mediamill"]["spec"],
        OBJECTS["RayCronJob", "mediamill"]["spec"]["jobTemplate"],
    ):
        assert spec["submissionMode"] == "K8sJobMode"
        assert spec["backoffLimit"] >= 1
        assert spec["activeDeadlineSeconds"] > 0
        # KubeRay takes either these rules or this switch.
        assert "shutdownAfterJobFinishes" not in spec
        rules = spec["deletionStrategy"]["deletionRules"]
        lives: dict[tuple[str, str], dict[str, int]] = {}
        for rule in rules:
            condition = dict(rule["condition"])
            ttl = condition.pop("ttlSeconds")
            [state] = condition.items()
            assert lives.setdefault(state, {}).setdefault(rule["policy"], ttl) == ttl
        assert set(lives) == {
            ("jobStatus", "SUCCEEDED"),
            ("jobStatus", "FAILED"),
            ("jobDeploymentStatus", "Failed"),
        }
        assert all(one["DeleteCluster"] <= one["DeleteSelf"] for one in lives.values())
        # A shell that the submitter starts would take an operator in it for its own.
        assert re.fullmatch(r"[\w/. -]+", spec["entrypoint"])
        script = spec["entrypoint"].rpartition("/etc/mediamill/")[2]
        assert script in OBJECTS["ConfigMap", "mediamill-job"]["data"]


def test_the_nightly_pod_may_do_what_it_does_and_no_more() -> None:
    spec = OBJECTS["CronJob", "mediamill"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["schedule"] == OBJECTS["RayCronJob", "mediamill"]["spec"]["schedule"]
    deadline = spec["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert deadline > OBJECTS["RayJob", "mediamill"]["spec"]["activeDeadlineSeconds"]
    account = spec["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"]
    binding = OBJECTS["RoleBinding", account]
    assert [one["name"] for one in binding["subjects"]] == [account]
    rules = OBJECTS["Role", binding["roleRef"]["name"]]["rules"]
    allowed = {
        (group, resource, verb, *rule.get("resourceNames", ("*",)))
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == {
        ("ray.io", "rayjobs", "create", "*"),
        ("ray.io", "rayjobs", "get", "mediamill"),
        ("ray.io", "rayjobs", "delete", "mediamill"),
    }
    [embedded] = yaml.safe_load_all(
        OBJECTS["ConfigMap", "mediamill-nightly"]["data"]["rayjob.yaml"]
    )
    assert embedded == OBJECTS["RayJob", "mediamill"]


def test_scripts_reach_the_cluster_as_they_are() -> None:
    for name, key in (
        ("mediamill-job", "run.sh"),
        ("mediamill-job", "stop_jobs.py"),
        ("mediamill-nightly", "nightly.py"),
    ):
        found = OBJECTS["ConfigMap", name]["data"][key]
        assert found.rstrip("\n") == (KUBERAY / key).read_text().rstrip("\n")


def test_the_job_file_is_one() -> None:
    job = job_file()
    assert job.resources.tensor_parallel <= FIGURES["generate"]["gpus"]


def test_all_objects_share_one_namespace() -> None:
    for path in MANIFESTS:
        for one in documents(path):
            assert one["metadata"]["namespace"] == FIGURES["namespace"]


def job_file() -> Any:
    data = yaml.safe_load(OBJECTS["ConfigMap", "mediamill-job"]["data"]["job.yaml"])
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return load_job(None, flat)


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in pod["containers"][0]["env"]}


def pinned(name: str) -> str:
    text = (INFRA.parent / "constraints.txt").read_text()
    found = re.search(rf"^{name}==(\S+)$", text, re.MULTILINE)
    assert found is not None
    return found[1]
