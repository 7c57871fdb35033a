"""Parcels: what one end sends is what the other takes, however it is cut on the way."""

import fcntl
import os
import random
import select
import struct
import threading

import numpy as np
import pytest

from mediamill.pipeline.decoding.message_stream import Receiver, Sender, pipes
from mediamill.pipeline.decoding.socket_messages import GarbledError, GoneError

MOST = 10_000  # bytes of a header


@pytest.fixture
def ends():
    """Who listens, and the handles of who sends."""
    listen, send = pipes()
    receiver = Receiver(*listen, MOST, patience_s=20.0)
    open_still = list(send)
    yield receiver, open_still
    receiver.close()
    for handle in open_still:
        os.close(handle)


def take_all(receiver, count):
    """The next so many; waits for the bell, and for nothing else."""
    found = []
    while len(found) < count:
        rings = select.select([receiver.bell], [], [], 20.0)[0]
        assert rings, "nothing is left, and the bell does not ring"
        receiver.hear()
        while (parcel := receiver.take()) is not None:
            found.append((parcel.header, data(receiver, parcel), parcel.shared, parcel.last))
    return found


def data(receiver, parcel):
    """Read in two pieces."""
    pieces = [np.empty(size, np.uint8) for size in (parcel.size // 3, -(-2 * parcel.size // 3))]
    for piece in pieces:
        receiver.read_into(piece)
    return b"".join(piece.tobytes() for piece in pieces)


@pytest.mark.parametrize("queue", [4096, 65536, 1024**2])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_sent_is_taken_in_its_order(queue, seed):
    """Also where the queue is full most of the time, and nobody listens but for the bell."""
    draw = random.Random(seed)
    listen, send = pipes()
    fcntl.fcntl(send[0], fcntl.F_SETPIPE_SZ, queue)
    receiver, sender = Receiver(*listen, MOST, patience_s=20.0), Sender(*send)
    sizes = [0, 1, 100, sender.most // 2, sender.most]
    parcels = [
        (draw.randbytes(draw.choice([0, 1, 500, MOST])), draw.randbytes(draw.choice(sizes)))
        for _ in range(120)
    ]
    flags = [(draw.random() < 0.2, draw.random() < 0.2) for _ in parcels]

    def speak():
        for (header, data), (shared, last) in zip(parcels, flags, strict=True):
            cut = draw.randrange(len(data) + 1)
            parts = memoryview(data)[:cut], memoryview(data)[cut:]
            sender.send(header, parts, shared=shared, last=last)
        sender.ring()

    thread = threading.Thread(target=speak)
    thread.start()
    found = take_all(receiver, len(parcels))
    thread.join()
    assert found == [
        (header, data, *flag) for (header, data), flag in zip(parcels, flags, strict=True)
    ]
    assert receiver.is_idle
    receiver.close()
    for handle in send:
        os.close(handle)


def test_what_was_sent_outlives_its_sender(ends):
    receiver, handles = ends
    sender = Sender(*handles)
    for number in range(3):
        sender.send(b"%d" % number, [memoryview(b"data")], shared=False, last=False)
    while handles:
        os.close(handles.pop())
    for number in range(3):
        parcel = receiver.take()
        assert parcel.header == b"%d" % number
        assert data(receiver, parcel) == b"data"
    with pytest.raises(GoneError):
        receiver.take()


def test_data_that_nobody_has_read_are_no_parcel(ends):
    receiver, handles = ends
    Sender(*handles).send(b"x", [memoryview(b"data")], shared=False, last=False)
    receiver.read_into(np.empty(receiver.take().size - 1, np.uint8))
    assert not receiver.is_idle
    with pytest.raises(GarbledError):
        receiver.take()


def test_who_sends_to_nobody_is_told(ends):
    receiver, handles = ends
    receiver.close()
    with pytest.raises(GoneError):
        Sender(*handles).send(b"x", shared=False, last=False)
    with pytest.raises(GoneError):
        Sender(*handles).ring()


def test_a_bell_that_nobody_hears_stops_nobody(ends):
    receiver, handles = ends
    sender = Sender(*handles)
    for _ in range(100_000):
        sender.ring()
    assert receiver.take() is None


@pytest.mark.parametrize(
    ("flags", "header", "data"), [(4, 0, 0), (0, MOST + 1, 0), (0, 2**32 - 1, 0), (0, 0, 2**32 - 1)]
)
def test_what_is_beyond_a_ceiling_is_refused_before_memory_is_taken(ends, flags, header, data):
    receiver, handles = ends
    os.write(handles[0], struct.pack("!BII", flags, header, data))
    with pytest.raises(GarbledError):
        receiver.take()


@pytest.mark.parametrize("cut", [7, 10, 12])
def test_the_rest_of_a_parcel_is_waited_for_so_long_and_no_longer(cut):
    listen, send = pipes()
    receiver = Receiver(*listen, MOST, patience_s=1.0)
    whole = struct.pack("!BII", 0, 2, 3) + b"{}abc"
    for rest_s in (0.1, None):
        os.write(send[0], whole[:cut])
        if rest_s is not None:
            threading.Timer(rest_s, os.write, (send[0], whole[cut:])).start()
            parcel = receiver.take()
            assert (parcel.header, data(receiver, parcel)) == (b"{}", b"abc")
            continue
        with pytest.raises(TimeoutError):
            data(receiver, receiver.take())
        assert not receiver.is_idle
    receiver.close()
    for handle in send:
        os.close(handle)
