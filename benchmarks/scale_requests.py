"""Counts the object store requests of a run: `python -m benchmarks.scale_requests`.

Plans and runs of two sizes use a real S3 server on this machine; the difference is the cost of a
further manifest file, write task or visible file. The stages of the runs are simulated, so media
are counted separately, by the real fetch stage. Times are not printed: a request to a real store
takes 20 to 100 ms, here it depends on the machine.
"""

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.scale_driver import start_ray
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.schemas.job import JobConfig, load_job
from tests.servers.s3 import FaultyS3, faulty_s3

BUCKET = "scale"
FILE_ROWS = 512
PLACES = (
    (re.compile(r"manifest"), "manifest"),
    (re.compile(r"_mediamill(/|%2F)log"), "log"),
    (re.compile(r"_mediamill(/|%2F)staged"), "staged"),
    (re.compile(r"_mediamill(/|%2F)ids"), "ids"),
    (re.compile(r"part-\d+"), "visible files"),
    (re.compile(r"media"), "media"),
)


@contextmanager
def counted(server: FaultyS3) -> Iterator[Counter[str]]:
    """Counts the requests by method and place while the block runs."""
    found: Counter[str] = Counter()
    plain = server.faults.draw

    def draw(method: str, path: str) -> str | None:
        where = next((name for pattern, name in PLACES if pattern.search(path)), "other")
        kind = "LIST" if method == "GET" and "list-type" in path else method
        found[f"{where} {kind}"] += 1
        return plain(method, path)

    server.faults.draw = draw  # type: ignore[method-assign]
    try:
        yield found
    finally:
        server.faults.draw = plain  # type: ignore[method-assign]


def put_manifest(server: FaultyS3, name: str, files: int) -> str:
    import boto3

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    client = boto3.client("s3", endpoint_url=server.direct, region_name="us-east-1", **keys)
    client.create_bucket(Bucket=BUCKET)
    for number in range(files):
        table = pa.table(
            {
                "id": [f"row-{number}-{index}" for index in range(FILE_ROWS)],
                "uri": [f"s3://{BUCKET}/media/{index % 4}.jpg" for index in range(FILE_ROWS)],
                "day": [f"{index % 8}" for index in range(FILE_ROWS)],
            }
        )
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, row_group_size=FILE_ROWS)
        key = f"{name}/manifest/{number:05}.parquet"
        client.put_object(Bucket=BUCKET, Key=key, Body=buffer.getvalue().to_pybytes())
    for number in range(4):
        client.put_object(Bucket=BUCKET, Key=f"media/{number}.jpg", Body=bytes(1000))
    return f"s3://{BUCKET}/{name}"


def job_of(base: str, folders: bool) -> JobConfig:
    settings: dict[str, Any] = {
        "job": "caption",
        "manifest": f"{base}/manifest/",
        "output": f"{base}/out",
        "model": str(CHECKPOINT),
        "prompt": CAPTION_PROMPT,
        "rows_per_file": 256,
        "partition_by": ["day"] if folders else [],
        "resources.batch_rows": 256,
        "resources.prepare_workers": 1,
        "resources.replicas": 1,
    }
    return load_job(None, settings)


def plans(server: FaultyS3) -> dict[str, Counter[str]]:
    """Counts a first plan of some files and of twice as many."""
    from mediamill.pipeline.plan import check

    found = {}
    for files in (8, 16):
        job = job_of(put_manifest(server, f"plan{files}", files), folders=False)
        with counted(server) as requests:
            check(job)
        found[f"plan of {files} files"] = requests
    return found


def runs(server: FaultyS3) -> dict[str, Counter[str]]:
    """Counts runs of 4 and 8 manifest files: 8 and 16 visible files, or as many folders."""
    import ray

    from mediamill.pipeline.run import check, run
    from tests.soak.simulated import STAGES

    start_ray(4)
    found = {}
    try:
        for folders in (False, True):
            for files in (4, 8):
                name = f"{files * FILE_ROWS} rows" + (" in 8 folders" if folders else "")
                base = put_manifest(server, f"run{files}{folders}", files)
                job = job_of(base, folders)
                plan = check(job)
                with counted(server) as requests:
                    run(job, plan, stages=STAGES)
                found[f"run of {name}"] = requests
    finally:
        ray.shutdown()
    return found


def media(server: FaultyS3) -> dict[str, Counter[str]]:
    """Counts the requests for 64 rows with different media."""
    from mediamill.pipeline.records import read_schema
    from mediamill.pipeline.stages.fetch import Fetch, FetchRules
    from mediamill.schemas.manifest import check_manifest_schema

    base = put_manifest(server, "media", 1)
    schema = check_manifest_schema(pa.schema([("id", pa.string()), ("uri", pa.string())]), "")
    rows = 4
    table = pa.Table.from_pylist(
        [{"id": str(i), "uri": f"s3://{BUCKET}/media/{i}.jpg"} for i in range(rows)],
        schema=read_schema(schema),
    )
    with counted(server) as requests:
        Fetch(schema, FetchRules.of(job_of(base, False), "/"))(table)
    return {f"fetching {rows} media": requests}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args(arguments)
    with faulty_s3(rate=0.0) as server:
        os.environ.update(server.environment)
        found = {**media(server), **plans(server), **runs(server)}
    for what, requests in found.items():
        named = ", ".join(f"{kind} {number}" for kind, number in sorted(requests.items()))
        print(f"{what}: {requests.total()} requests: {named}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
