"""Values of a job's sections `fetch` and `limits` that could only fail later are refused."""

import pytest

from mediamill.pipeline.fetching.addresses import AddressRules, check_host, parse_url
from mediamill.pipeline.fetching.check_job import check_fetching
from mediamill.pipeline.fetching.fetcher import FetchRules
from mediamill.pipeline.storage.schemes import SCHEMES
from mediamill.schemas.errors import JobError
from tests.pipeline.world import make_job

GIB = 1024**3


def job_with(**changes):
    return make_job("m.parquet", "out", **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fetch__schemes": ["s3x"]}, "fetch.schemes: found 's3x', did you mean 's3'?"),
        ({"fetch__schemes": ["file", "HTTPS"]}, "found 'HTTPS', did you mean 'https'?"),
        ({"fetch__schemes": ["https://"]}, "found 'https://', did you mean 'https'?"),
        ({"fetch__schemes": ["ftp://user:secret@h/"]}, r"found 'ftp://h/', expected one of file, "),
        ({"fetch__schemes": []}, "fetch.schemes: found an empty list"),
        ({"fetch__hosts": ["https://a.com"]}, "found 'https://a.com', expected a host alone"),
        ({"fetch__hosts": ["a.com/b"]}, "found 'a.com/b', expected a host alone"),
        ({"fetch__hosts": ["a.com:443"]}, r"'a.com:443' with a port, expected .* \('a.com'\)"),
        (
            {"fetch__hosts": ["a..com"]},
            "fetch.hosts: 'a..com': found a host that is not a valid name",
        ),
        ({"fetch__hosts": ["a b.com"]}, "fetch.hosts: 'a b.com': found a host that is not a valid"),
        ({"fetch__hosts": ["300.1.1.1"]}, "fetch.hosts: '300.1.1.1': .* expected a name"),
        ({"fetch__hosts": ["*.a.com", "10.0.0.7"]}, "found '10.0.0.7', which is private"),
        ({"fetch__hosts": ["[::1]"]}, r"found '\[::1\]', which is private"),
        ({"fetch__hosts": ["localhost"]}, "fetch.private_addresses=true allows it"),
        ({"fetch__roots": ["s3://bucket/media"]}, "fetch.roots: found 's3://bucket/media'"),
        ({"fetch__roots": ["/media", "/proc/self"]}, "expected a folder outside /proc"),
        ({"fetch__ahead_bytes": 2**60}, "fetch.ahead_bytes: found 1.15292e.18, expected at most"),
        ({"limits__decode_bytes": 2**70}, "limits.decode_bytes: found 1.18"),
        ({"limits__fetch_timeout_s": 1e12}, "found 1e.12, expected at most 31,622,400 seconds"),
    ],
)
def test_values_that_can_only_fail_are_refused(changes, words):
    with pytest.raises(JobError, match=words) as error:
        check_fetching(job_with(**changes))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


# Patterns, and a host that each has to allow.
HOSTS = {
    "*": "a.com",
    "a.com": "a.com",
    "A.com.": "a.com",
    "*.a.com": "b.c.a.com",
    "cdn-*.a.com": "cdn-7.a.com",
    "192.0.2.*": "192.0.2.9",
    "8.*.8": "8.8.8.8",
    "8.8.8.8": "8.8.8.8",
    "[2001:4860:4860::8888]": "2001:4860:4860::8888",
    "2001:4860::*": "2001:4860::5",
    "bücher.de": "xn--bcher-kva.de",
}


@pytest.mark.parametrize("pattern", HOSTS)
def test_a_pattern_that_some_host_matches_is_accepted(pattern):
    host = HOSTS[pattern]
    check_host(parse_url(f"https://{f'[{host}]' if ':' in host else host}/").host, rules([pattern]))
    check_fetching(job_with(fetch__hosts=[pattern]))


def rules(hosts):
    return AddressRules(tuple(hosts))


def test_values_that_may_work_are_accepted():
    check_fetching(job_with())
    for scheme in SCHEMES:
        check_fetching(job_with(fetch__schemes=[scheme]))
    private = {"fetch__private_addresses": True, "fetch__hosts": ["localhost", "10.0.0.7", "::1"]}
    check_fetching(job_with(**private))
    # Other machines may have folders that this machine does not have.
    check_fetching(job_with(fetch__roots=["/no/such/folder", "~/media", "file:///data", "media"]))
    check_fetching(job_with(limits__decode_bytes=64 * GIB, limits__decode_timeout_s=86400.0))


def test_the_users_own_folder_can_be_a_root(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    job = job_with(fetch__roots=["~/media", "more", "/data"])
    assert FetchRules.of(job, "/base").roots == (f"{tmp_path}/media", "/base/more", "/data")


def test_a_root_counts_once_so_that_a_job_can_be_derived_from_another(tmp_path):
    job = job_with().model_copy(update={"manifest": f"{tmp_path}/m.parquet"})
    assert FetchRules.of(job, str(tmp_path)).roots == (str(tmp_path),)  # its own folder and `base`
    job = job_with(fetch__roots=["media", "./media"])
    assert FetchRules.of(job, "/base").roots == ("/base/media",)
