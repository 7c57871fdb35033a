"""Addresses of clusters that are none, or where none is, are told soon and in one sentence."""

import socket

import pytest

from mediamill.pipeline.faults import PermanentError
from mediamill.pipeline.ray_cluster import cluster, cluster_address
from mediamill.pipeline.ray_cluster.pool_sizes import TooSmallError, size_pools
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import Resources
from tests.servers.ports import free_ports


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (None, None, None),
        ("", "", None),
        ("local", "10.0.0.5:6379", None),
        ("auto", None, "auto"),
        (None, "auto", "auto"),
        (None, "head.internal:6379", "head.internal:6379"),
        (" 10.0.0.5:6379\n", "auto", "10.0.0.5:6379"),
        ("[::1]:6379", None, "[::1]:6379"),
    ],
)
def test_the_address_that_counts(given, environment, expected):
    variables = {} if environment is None else {"RAY_ADDRESS": environment}
    assert cluster_address.cluster_address(given, variables) == expected


@pytest.mark.parametrize(
    "address",
    [
        "ray://h:10001",
        "ray://",
        "http://h:8265",
        "h",
        "h:",
        "h:0",
        "h:65536",
        "h:x",
        "a b:1",
        "u@h:1",
    ],
)
def test_what_is_no_address_is_a_mistake_of_the_job(address):
    with pytest.raises(JobError, match=r"--address: found .* HOST:PORT of a running head"):
        cluster_address.cluster_address(address, {})
    with pytest.raises(JobError, match="RAY_ADDRESS: found "):
        cluster_address.cluster_address(None, {"RAY_ADDRESS": address})


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1:{port}", "refused"), ("host.invalid:6379", "not known")]
)
def test_a_head_that_is_not_there(monkeypatch, address, reason):
    monkeypatch.setattr(cluster_address, "_PAUSE_S", 0.0)
    with pytest.raises(PermanentError, match=rf"cannot be reached \(.*{reason}.*\); expected HOST"):
        cluster_address.await_head(address.format(port=free_ports(1)[0]))


def test_this_machine_is_known_before_a_local_cluster_starts():
    node = cluster._this_machine()
    assert node.cpus >= 2
    assert node.memory > 2**28
    assert node.labels == {"mediamill-cluster": "local"}
    with pytest.raises(TooSmallError, match=r"resources\.replicas"):
        size_pools(Resources(replicas=10**9, device="cpu"), [node])


@pytest.mark.parametrize(
    ("variables", "in_file", "mode"),
    [
        ({}, False, None),
        ({}, True, "token"),
        ({"RAY_AUTH_TOKEN": "t"}, False, "token"),
        ({"RAY_AUTH_TOKEN_PATH": "/secret"}, False, "token"),
        ({"RAY_AUTH_TOKEN": ""}, False, None),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, True, "disabled"),
    ],
)
def test_a_token_in_its_usual_place_is_used(tmp_path, variables, in_file, mode):
    if in_file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    environment = {"HOME": str(tmp_path), **variables}
    cluster_address.use_token(environment)
    assert environment.get("RAY_AUTH_MODE") == mode


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "the cluster wants a token: expected that of its head in ~/.ray/auth_token or RAY_AU"),
        ({"RAY_AUTH_MODE": "disabled"}, "found RAY_AUTH_MODE=disabled, expected token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}, "the token of RAY_AUTH_TOKEN,"),
        ({"RAY_AUTH_MODE": "token"}, "refused the token of ~/.ray/auth_token, expected that of"),
    ],
)
def test_a_refused_token_is_told_by_its_place(variables, sentence):
    told = cluster_address.token_sentence(variables)
    assert sentence in told
    assert "secret" not in told


def test_what_listens_is_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert cluster_address.is_reachable(address)
    assert not cluster_address.is_reachable(address)
