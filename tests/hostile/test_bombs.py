"""Hand-made bombs: each is refused with the right code or read correctly, within its limits."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from mediamill.model.media.limits import MediaLimits
from tests.hostile.bomb import Bomb
from tests.hostile.decoding import MIB, DecodeRequest, DecodeWorker
from tests.hostile.disguises import disguises, playlist, with_reference
from tests.hostile.picture_bombs import PICTURE_BOMBS
from tests.hostile.video_bombs import VIDEO_BOMBS

MEMORY = (
    1024 * MIB
)  # for files that are small when decoded; `Bomb.pixels` allows more for large pictures
BYTES_PER_PIXEL = 20  # see MediaLimits
BOMBS = {**PICTURE_BOMBS, **VIDEO_BOMBS}
SLOW = [name for name, bomb in BOMBS.items() if bomb.slow]
QUICK = [name for name in BOMBS if name not in SLOW]
DISGUISES = disguises("/canary", "http://127.0.0.1:1/canary")  # for their names alone


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecodeWorker]:
    memory = BYTES_PER_PIXEL * MediaLimits().max_image_pixels
    with DecodeWorker(tmp_path_factory.mktemp("worker"), memory, timeout_s=120) as decoding:
        yield decoding


@pytest.mark.sampled(80)
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_bombs(worker: DecodeWorker, name: str) -> None:
    bomb = BOMBS[name]
    verdict = worker.verdict(DecodeRequest(bomb.build(), bomb.kind, bomb.start_s, bomb.end_s))
    assert verdict.outcome in bomb.outcomes, verdict
    assert verdict.peak <= max(MEMORY, BYTES_PER_PIXEL * bomb.pixels), verdict


class Canary:
    """A pipe that blocks any reader, and a server that counts connections."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "canary"
        os.mkfifo(self.path)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(0)
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}/canary.ts"

    def visitors(self) -> int:
        """Returns the number of connections since the last call."""
        count = 0
        while True:
            try:
                self.server.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    canary = Canary(tmp_path_factory.mktemp("canary"))
    yield canary
    canary.server.close()


@pytest.mark.sampled(70)
@pytest.mark.parametrize("name", DISGUISES)
@pytest.mark.parametrize("form", ["bytes", "file"])
def test_disguises_open_nothing_else(
    worker: DecodeWorker, canary: Canary, tmp_path: Path, name: str, form: str
) -> None:
    bomb: Bomb = disguises(str(canary.path), canary.url)[name]
    data = bomb.build()
    if form == "file":  # also named like what it is not
        path = tmp_path / "medium.mp4"
        path.write_bytes(data)
    verdict = worker.verdict(DecodeRequest(path if form == "file" else data, bomb.kind))
    assert verdict.outcome in bomb.outcomes, verdict
    assert verdict.peak <= MEMORY, verdict
    assert canary.visitors() == 0


def open_with_ffmpeg(data: bytes, folder: Path, form: str, **options: str) -> None:
    """Opens the bytes with FFmpeg itself, without our precautions."""
    path = folder / "playlist.m3u8"  # FFmpeg accepts a playlist by its name only
    path.write_bytes(data)
    try:
        with av.open(str(path), format=form, container_options=options, timeout=5) as container:
            next(container.decode(video=0), None)
    except (av.FFmpegError, IndexError, OSError):
        pass


def test_the_canary_notices_a_request_for_an_address(canary: Canary, tmp_path: Path) -> None:
    open_with_ffmpeg(playlist(canary.url), tmp_path, "hls", protocol_whitelist="file,http,tcp")
    assert canary.visitors() > 0


def test_the_canary_notices_a_reader_of_the_file(canary: Canary, tmp_path: Path) -> None:
    was_read = threading.Event()

    def wait_for_reader() -> None:  # opening for writing waits for a reader
        os.close(os.open(canary.path, os.O_WRONLY))
        was_read.set()

    threading.Thread(target=wait_for_reader, daemon=True).start()
    data = with_reference(str(canary.path), b"alis")
    open_with_ffmpeg(data, tmp_path, "mov", enable_drefs="1", use_absolute_path="1")
    try:
        assert was_read.wait(5)
    finally:
        if not was_read.is_set():
            os.close(os.open(canary.path, os.O_RDONLY | os.O_NONBLOCK))
