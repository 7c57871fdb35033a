"""Memory that was freed between live allocations returns to the operating system."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import ctypes, os
from mediamill.pipeline.ray_cluster.trim_memory import trim_memory
from tests.processes import memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
trim_memory()
blocks = []
for number in range(2000):
    blocks.append(libc.malloc(50_000))
    ctypes.memset(blocks[-1], 1, 50_000)
for number, block in enumerate(blocks):
    if number % 10:
        libc.free(block)
before = memory(os.getpid(), "RssAnon")
trim_memory()
print(before - memory(os.getpid(), "RssAnon"))
"""


def test_holes_in_the_heap_are_given_back():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) > 60_000_000  # of 90 MB
