"""Measures `mediamill manifest` on many tiny media: time and the peak memory of its process.

    python -m benchmarks.manifest folder 1000000      # a flat folder of empty files
    python -m benchmarks.manifest tar 1000000         # one sparse shard
    python -m benchmarks.manifest s3 100000           # objects of a local S3 server (moto)
    python -m benchmarks.manifest members 10000       # reads members by range requests from S3

Each prints one JSON object. `s3` draws its objects in the server's process, without requests.
"""

import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

_BUILD = """
import json, resource, sys, time
from mediamill.pipeline.sources.build import build_manifest
from mediamill.pipeline.storage import storage
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.monotonic()
rows = build_manifest(sys.argv[1], storage.resolve(sys.argv[2])).rows
print(json.dumps({"rows": rows, "seconds": round(time.monotonic() - start, 1),
    "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    "rss_before_mb": before // 1024}))
"""
_BUCKET = "many"


def main() -> None:
    kind, count = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        match kind:
            case "folder":
                (place / "p").mkdir()
                for number in range(count):
                    os.close(os.open(place / "p" / f"IMG_{number:08}.jpg", os.O_CREAT, 0o600))
                print(json.dumps(_measure(str(place / "p"), place / "m", {})))
            case "tar":
                _draw_shard(place / "a.tar", count)
                print(json.dumps(_measure(str(place / "a.tar"), place / "m", {})))
            case "s3":
                with _server() as (environment, backend):
                    for number in range(count):
                        backend.put_object(_BUCKET, f"{number % 100:02}/{number:08}.jpg", b"")
                    print(json.dumps(_measure(f"s3://{_BUCKET}", place / "m", environment)))
            case "members":
                print(json.dumps(_read_members(place, count)))


def _measure(source: str, output: Path, environment: dict[str, str]) -> dict[str, object]:
    """Builds twice, in processes of their own: the second finds nothing new."""
    results = []
    for _ in range(2):
        command = [sys.executable, "-c", _BUILD, source, str(output)]
        done = subprocess.run(
            command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
        )
        results.append(json.loads(done.stdout))
    return {"first": results[0], "again": results[1]}


def _draw_shard(path: Path, count: int) -> None:
    """Members of 100 kB each, as holes."""
    size = 100_000
    with path.open("wb") as file:
        offset = 0
        for number in range(count):
            info = tarfile.TarInfo(f"{number:08}.jpg")
            info.size = size
            os.pwrite(file.fileno(), info.tobuf(tarfile.USTAR_FORMAT), offset)
            offset += 512 + -(-size // 512) * 512
        file.truncate(offset + 1024)


def _read_members(place: Path, count: int) -> dict[str, object]:
    """Counts the bytes that fetching all members of a shard takes from the server."""
    import fsspec
    import pyarrow.parquet as pq

    from mediamill.pipeline.fetching import object_source
    from mediamill.pipeline.fetching.fetcher import Fetcher, FetchRules, Reservation
    from mediamill.schemas.job import FetchConfig, Limits

    sizes = [1000 + number % 9000 for number in range(count)]
    shard = place / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{number:06}.jpg")
            info.size = size
            with (place / "data").open("wb+") as file:
                file.write(number.to_bytes(4, "big") + bytes(size - 4))
                file.seek(0)
                tar.addfile(info, file)
    taken = 0
    lock = threading.Lock()
    with _server() as (environment, _):
        os.environ.update(environment)
        fsspec.filesystem("s3").put_file(str(shard), f"{_BUCKET}/a.tar")
        _measure(f"s3://{_BUCKET}/a.tar", place / "m", environment)
        uris = pq.read_table(place / "m")["uri"].to_pylist()
        real = object_source._S3Source._chunks

        def counted(*arguments):
            nonlocal taken
            for chunk in real(*arguments):
                with lock:
                    taken += len(chunk)
                yield chunk

        object_source._S3Source._chunks = counted  # type: ignore[method-assign]
        fetcher = Fetcher(FetchRules(FetchConfig(), Limits(), str(place)))
        start = time.monotonic()
        for number, uri in enumerate(uris):
            data = fetcher.fetch(uri, Reservation(fetcher.budget)).data
            assert data is not None
            assert data[:4].tobytes() == number.to_bytes(4, "big")
            assert data.size == sizes[number]
        seconds = time.monotonic() - start
    return {
        "members": count,
        "own_bytes": sum(sizes),
        "read_bytes": taken,
        "ratio": round(taken / sum(sizes), 4),
        "seconds": round(seconds, 1),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _server():
    """A local S3 server: its environment, and the store in this process."""
    import logging
    from contextlib import contextmanager

    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    @contextmanager
    def running():
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        backend = s3_backends["123456789012"]["aws"]
        backend.create_bucket(_BUCKET, "us-east-1")
        try:
            yield environment, backend
        finally:
            server.stop()

    return running()


if __name__ == "__main__":
    main()
