"""Kills the making of a local copy before each of its steps, and lets another process go on.

Run as a program, for a folder on a disk: a child for each kill, from a store in memory that all
children inherit. Prints {"kills": n, "fetched": [...]}: how many pieces each second process had to
bring, after the kill before step 1, 2, ...; or fails with a traceback.
"""

import json
import os
import shutil
import sys
import threading
from pathlib import Path

from fsspec.implementations.memory import MemoryFileSystem

from mediamill.model.checkpoint import content_hash
from mediamill.pipeline.checkpoint import machine_copy
from mediamill.pipeline.checkpoint.checkpoint_hash import CheckpointHash
from mediamill.pipeline.storage import storage

KILLED, FAILED = 77, 78
PIECE = 1000
FILES = {"config.json": b"{}", "empty.txt": b"", "model.safetensors": bytes(range(256)) * 20}
PIECES = sum(max(1, -(-len(data) // PIECE)) for data in FILES.values())
STEPS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


class Stamped(MemoryFileSystem):
    """A store that names contents, as those do which have one."""

    protocol = "stamped"
    fetched = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("stamped://"))

    def info(self, path, **kwargs):
        found = super().info(path, **kwargs)
        return {**found, "ETag": str(hash(self.cat_file(path)))} if "size" in found else found

    def cat_file(self, path, start=None, end=None, **kwargs):
        type(self).fetched += start is not None
        return super().cat_file(path, start, end, **kwargs)


def make(root: Path, content: CheckpointHash) -> int:
    """Makes the copy; how many pieces were fetched for it."""
    Stamped.fetched = 0
    found = machine_copy.local_folder("stamped://model", content, str(root))
    kept = {path.name: path.read_bytes() for path in found.iterdir() if path.name[0] != "."}
    assert kept == FILES
    return Stamped.fetched


def child(root: Path, content: CheckpointHash, kill: int) -> None:
    """Makes the copy and ends before step `kill`."""
    lock, done = threading.Lock(), [0]

    def step() -> None:
        with lock:
            done[0] += 1
            if done[0] == kill:
                os._exit(KILLED)

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        of_ours = event == "open" and str(root) in str(arguments[0])
        if event in STEPS or of_ours:
            step()

    def stepping(call):
        def stepped(*arguments):
            step()
            return call(*arguments)

        return stepped

    for name in ("pwrite", "fsync"):
        setattr(os, name, stepping(getattr(os, name)))
    sys.addaudithook(hear)
    try:
        make(root, content)
    except BaseException as error:  # noqa: BLE001 - the parent has to know
        print(repr(error), file=sys.stderr)
        os._exit(FAILED)
    os._exit(0)


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path) -> None:
    from fsspec import register_implementation

    register_implementation("stamped", Stamped)
    machine_copy._CHUNK_BYTES = PIECE
    content_hash._WHOLE_BYTES = 10  # so that the hash takes samples, and cannot see every hole
    content_hash._HEAD_BYTES, content_hash._SAMPLES, content_hash._SAMPLE_BYTES = 8, 2, 8
    store = Stamped()
    for name, data in FILES.items():
        store.pipe_file(f"/model/{name}", data)
    content = CheckpointHash.of(storage.resolve("stamped://model"))
    fetched = []
    for kill in range(1, 10_000):
        root = folder / "cache"
        pid = os.fork()
        if not pid:
            child(root, content, kill)
        code = code_of(pid)
        assert code in (0, KILLED), f"killed before step {kill}: {code}"
        if code == 0:
            break
        fetched.append(make(root, content))
        left = {path.name for path in root.iterdir()}
        assert left == {content.whole, f"{content.whole}.lock"}, left
        shutil.rmtree(root)
    print(json.dumps({"kills": len(fetched), "fetched": fetched}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
