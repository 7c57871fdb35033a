"""Which address of a Ray cluster `submit` takes, and what it says about another."""

import socket

import pytest

from mediamill.jobs.cluster.dashboard_url import dashboard_url, why_silent
from mediamill.pipeline.ray_cluster.cluster_address import cluster_address
from mediamill.schemas.errors import JobError


@pytest.mark.parametrize(
    ("given", "environment", "url"),
    [
        ("http://head:8265", {}, "http://head:8265"),
        ("head:8265", {}, "http://head:8265"),
        (" 10.0.0.5:8265/ ", {}, "http://10.0.0.5:8265"),
        ("[::1]:8265", {}, "http://[::1]:8265"),
        ("head", {}, "http://head"),
        ("https://ray.example.com/cluster/", {}, "https://ray.example.com/cluster"),
        (None, {"RAY_API_SERVER_ADDRESS": "head:8265"}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "http://head:8265"}, "http://head:8265"),
        ("one:8265", {"RAY_API_SERVER_ADDRESS": "two:8265"}, "http://one:8265"),
    ],
)
def test_a_missing_scheme_is_added(given, environment, url):
    assert dashboard_url(given, environment) == url


@pytest.mark.parametrize(
    ("given", "environment", "sentence"),
    [
        (None, {}, "expected --address, the URL of the cluster's dashboard, such as http://HEAD"),
        (None, {"RAY_ADDRESS": "10.0.0.5:6379"}, "expected --address, the URL"),
        ("auto", {}, "--address: found 'auto', which mediamill run takes; expected the URL"),
        ("ray://head:10001", {}, "'ray://head:10001', an address of Ray Client; expected the URL"),
        ("head:6379", {}, "the port that mediamill run --address connects to; expected the URL"),
        ("ftp://head:8265", {}, "--address: found 'ftp://head:8265', expected the URL"),
        ("head:port", {}, "--address: found 'head:port', expected the URL"),
        ("http://:8265", {}, "found 'http://:8265', expected the URL"),
        (None, {"RAY_API_SERVER_ADDRESS": "auto"}, "RAY_API_SERVER_ADDRESS: found 'auto'"),
    ],
)
def test_another_address_is_told_from_it(given, environment, sentence):
    with pytest.raises(JobError) as error:
        dashboard_url(given, environment)
    assert sentence in str(error.value)


def test_a_password_is_not_shown():
    with pytest.raises(JobError) as error:
        dashboard_url("ray://me:secret@head:10001", {})
    assert "secret" not in str(error.value)


def test_run_tells_the_url_of_a_dashboard_from_its_own_address():
    with pytest.raises(JobError) as error:
        cluster_address("http://head:8265", {})
    assert str(error.value).startswith(
        "--address: found 'http://head:8265', the URL of a dashboard, which mediamill submit takes"
    )


def test_why_nothing_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "is no dashboard of Ray" in why_silent(f"http://127.0.0.1:{port}")
    sentence = why_silent(f"http://127.0.0.1:{port}")
    assert "(Connection refused)" in sentence
    assert "`pip install 'ray[default]'`" in sentence
