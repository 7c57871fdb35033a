"""Finds local ports that no process listens on."""

import socket


def free_ports(count: int) -> list[int]:
    """Returns `count` different ports; another process may still take one before it is used."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
