"""The storage rights, held against a server that refuses what they do not grant."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from infra.render import figures
from tests.infra.files import INFRA
from tests.servers.ports import free_ports

JOB = figures()["job"]
POLICY = json.loads((INFRA / "iam" / "policy.json").read_text())

# Everything that a run does to its storage, with the functions that it does it with.
WORK = """
import sys
from mediamill.pipeline.storage import storage
manifest, model, media, output = map(storage.resolve, sys.argv[1:])
for place in (manifest, model, media):
    assert storage.read(place / "file") == b"data"
    assert storage.list_files(place)
    try:
        storage.put(place / "file", b"changed")
        sys.exit("could write " + place.url)
    except PermissionError:
        pass
assert storage.put_if_absent(output / "_ledger/1.json", b"{}")
assert not storage.put_if_absent(output / "_ledger/1.json", b"other")
storage.put(output / "_staging/part.parquet", b"x" * (60 << 20))  # in several parts
storage.move(output / "_staging/part.parquet", output / "date=1/part.parquet")
assert storage.exists(output / "date=1/part.parquet")
storage.remove(output / "date=1/part.parquet")
assert len(storage.list_files(output)) == 1
try:
    storage.put(storage.resolve(sys.argv[4].rstrip("/") + "-of-others/") / "file", b"x")
    sys.exit("could write beside the output")
except PermissionError:
    pass
"""


def without_conditions() -> str:
    """The server knows no conditions on prefixes: only the lists are narrowed by them."""
    kept = [{k: v for k, v in one.items() if k != "Condition"} for one in POLICY["Statement"]]
    listed = {a for one in POLICY["Statement"] if "Condition" in one for a in one["Action"]}
    assert listed == {"s3:ListBucket"}
    return json.dumps({**POLICY, "Statement": kept})


@pytest.fixture
def endpoint() -> Iterator[str]:
    [port] = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/").close()
            break
        except urllib.error.URLError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield address
    server.terminate()
    server.wait(30)


def test_a_run_needs_no_more_than_the_policy_grants(endpoint: str) -> None:
    root = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
    options = {"endpoint_url": endpoint, "region_name": "us-east-1", **root}
    s3, iam = boto3.client("s3", **options), boto3.client("iam", **options)
    places = [JOB["manifest"], JOB["model"], figures()["media"][0], JOB["output"]]
    for bucket in {place.split("/")[2] for place in places}:
        s3.create_bucket(Bucket=bucket)
    for place in places[:3]:
        bucket, _, key = place.removeprefix("s3://").partition("/")
        s3.put_object(Bucket=bucket, Key=f"{key}file", Body=b"data")
    iam.create_user(UserName="mill")
    iam.put_user_policy(UserName="mill", PolicyName="run", PolicyDocument=without_conditions())
    key = iam.create_access_key(UserName="mill")["AccessKey"]
    for client in (s3, iam):
        client.close()
    # From now on the server judges every request.
    judge = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(judge).close()
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ended = subprocess.run(
        [sys.executable, "-c", WORK, *places],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
