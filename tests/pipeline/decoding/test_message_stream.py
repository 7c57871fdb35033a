"""Frames: the receiver gets what the sender sent, however it is split on the way."""

import fcntl
import os
import random
import select
import struct
import threading

import numpy as np
import pytest

from mediamill.pipeline.decoding.message_stream import Receiver, Sender, create_pipes
from mediamill.pipeline.decoding.socket_messages import ConnectionClosedError, InvalidMessageError

MAX_HEADER = 10_000  # bytes of a header


@pytest.fixture
def ends():
    """The receiver, and the sender's file descriptors."""
    receiving, sending = create_pipes()
    receiver = Receiver(*receiving, MAX_HEADER, timeout_s=20.0)
    open_still = list(sending)
    yield receiver, open_still
    receiver.close()
    for fd in open_still:
        os.close(fd)


def receive(receiver, count):
    """The next so many frames; waits for the doorbell, and for nothing else."""
    found = []
    while len(found) < count:
        rings = select.select([receiver.doorbell], [], [], 20.0)[0]
        assert rings, "frames are missing, and the doorbell does not ring"
        receiver.clear_doorbell()
        while (frame := receiver.next_frame()) is not None:
            found.append((frame.header, data(receiver, frame), frame.shared, frame.last))
    return found


def data(receiver, frame):
    """Read in two pieces."""
    pieces = [np.empty(size, np.uint8) for size in (frame.size // 3, -(-2 * frame.size // 3))]
    for piece in pieces:
        receiver.read_into(piece)
    return b"".join(piece.tobytes() for piece in pieces)


@pytest.mark.parametrize("capacity", [4096, 65536, 1024**2])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_sent_is_taken_in_its_order(capacity, seed):
    """Also where the pipe is full most of the time, and only the doorbell wakes the receiver."""
    draw = random.Random(seed)
    receiving, sending = create_pipes()
    fcntl.fcntl(sending[0], fcntl.F_SETPIPE_SZ, capacity)
    receiver, sender = Receiver(*receiving, MAX_HEADER, timeout_s=20.0), Sender(*sending)
    sizes = [0, 1, 100, sender.max_data_bytes // 2, sender.max_data_bytes]
    frames = [
        (draw.randbytes(draw.choice([0, 1, 500, MAX_HEADER])), draw.randbytes(draw.choice(sizes)))
        for _ in range(120)
    ]
    flags = [(draw.random() < 0.2, draw.random() < 0.2) for _ in frames]

    def send_all():
        for (header, data), (shared, last) in zip(frames, flags, strict=True):
            cut = draw.randrange(len(data) + 1)
            parts = memoryview(data)[:cut], memoryview(data)[cut:]
            sender.send(header, parts, shared=shared, last=last)
        sender.ring()

    thread = threading.Thread(target=send_all)
    thread.start()
    found = receive(receiver, len(frames))
    thread.join()
    assert found == [
        (header, data, *flag) for (header, data), flag in zip(frames, flags, strict=True)
    ]
    assert receiver.is_idle
    receiver.close()
    for fd in sending:
        os.close(fd)


def test_what_was_sent_outlives_its_sender(ends):
    receiver, fds = ends
    sender = Sender(*fds)
    for number in range(3):
        sender.send(b"%d" % number, [memoryview(b"data")], shared=False, last=False)
    while fds:
        os.close(fds.pop())
    for number in range(3):
        frame = receiver.next_frame()
        assert frame.header == b"%d" % number
        assert data(receiver, frame) == b"data"
    with pytest.raises(ConnectionClosedError):
        receiver.next_frame()


def test_unread_data_are_no_frame(ends):
    receiver, fds = ends
    Sender(*fds).send(b"x", [memoryview(b"data")], shared=False, last=False)
    receiver.read_into(np.empty(receiver.next_frame().size - 1, np.uint8))
    assert not receiver.is_idle
    with pytest.raises(InvalidMessageError):
        receiver.next_frame()


def test_sending_without_a_receiver_raises(ends):
    receiver, fds = ends
    receiver.close()
    with pytest.raises(ConnectionClosedError):
        Sender(*fds).send(b"x", shared=False, last=False)
    with pytest.raises(ConnectionClosedError):
        Sender(*fds).ring()


def test_a_doorbell_that_is_never_cleared_does_not_block(ends):
    receiver, fds = ends
    sender = Sender(*fds)
    for _ in range(100_000):
        sender.ring()
    assert receiver.next_frame() is None


@pytest.mark.parametrize(
    ("flags", "header", "data"),
    [(4, 0, 0), (0, MAX_HEADER + 1, 0), (0, 2**32 - 1, 0), (0, 0, 2**32 - 1)],
)
def test_what_exceeds_a_limit_is_refused_before_memory_is_allocated(ends, flags, header, data):
    receiver, fds = ends
    os.write(fds[0], struct.pack("!BII", flags, header, data))
    with pytest.raises(InvalidMessageError):
        receiver.next_frame()


@pytest.mark.parametrize("cut", [7, 10, 12])
def test_the_rest_of_a_frame_is_waited_for_so_long_and_no_longer(cut):
    receiving, sending = create_pipes()
    receiver = Receiver(*receiving, MAX_HEADER, timeout_s=1.0)
    whole = struct.pack("!BII", 0, 2, 3) + b"{}abc"
    for rest_s in (0.1, None):
        os.write(sending[0], whole[:cut])
        if rest_s is not None:
            threading.Timer(rest_s, os.write, (sending[0], whole[cut:])).start()
            frame = receiver.next_frame()
            assert (frame.header, data(receiver, frame)) == (b"{}", b"abc")
            continue
        with pytest.raises(TimeoutError):
            data(receiver, receiver.next_frame())
        assert not receiver.is_idle
    receiver.close()
    for fd in sending:
        os.close(fd)
