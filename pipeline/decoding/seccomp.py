"""A seccomp-BPF filter that blocks system calls which a decoder has no use for.

Blocked are calls that reach the network, other processes, other programs, or change folders. Linux
only, on the architectures listed below.
"""

import ctypes
import errno
import platform
import struct
import sys
from collections.abc import Collection
from typing import NamedTuple


class _Architecture(NamedTuple):
    """audit: the kernel's AUDIT_ARCH number. seccomp: the number of that call itself."""

    audit: int
    seccomp: int
    blocked: dict[str, int]


# In this order: the network; other processes and programs; files and folders; the system.
# sendmsg and recvmsg stay: the worker's own connection needs them, and it can open no other.
_X86_64 = {
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288,
    "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "ptrace": 101,
    "process_vm_readv": 310, "process_vm_writev": 311,
    "truncate": 76, "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87, "symlink": 88,
    "chmod": 90, "chown": 92, "mknod": 133, "mkdirat": 258, "mknodat": 259, "unlinkat": 263,
    "renameat": 264, "linkat": 265, "symlinkat": 266, "fchmodat": 268, "renameat2": 316,
    "mount": 165, "umount2": 166, "unshare": 272, "setns": 308, "bpf": 321, "io_uring_setup": 425,
}  # fmt: skip
_AARCH64 = {
    "socket": 198, "bind": 200, "listen": 201, "accept": 202, "connect": 203, "accept4": 242,
    "execve": 221, "execveat": 281, "kill": 129, "ptrace": 117,
    "process_vm_readv": 270, "process_vm_writev": 271,
    "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38,
    "truncate": 45, "fchmodat": 53, "renameat2": 276,
    "umount2": 39, "mount": 40, "unshare": 97, "setns": 268, "bpf": 280, "io_uring_setup": 425,
}  # fmt: skip
_ARCHITECTURES = {
    "x86_64": _Architecture(0xC000003E, 317, _X86_64),
    "aarch64": _Architecture(0xC00000B7, 277, _AARCH64),
}
_X32_SYSCALL_BIT = 0x40000000  # numbers from here on are the same calls of another ABI
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF instructions
_SYSCALL_OFFSET, _AUDIT_OFFSET = 0, 4  # in struct seccomp_data
_RET_ALLOW, _RET_EPERM = 0x7FFF0000, 0x00050000 | errno.EPERM
_SET_MODE_FILTER, _FLAG_SPEC_ALLOW = 1, 4  # the flag: without slowing the process down


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def block_syscalls() -> bool:
    """Makes the listed calls fail with EPERM, for good, in this process, its threads and forks.

    The process must have PR_SET_NO_NEW_PRIVS set. Returns whether the filter could be installed.
    """
    architecture = _ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or architecture is None:
        return False
    instructions = _instructions(architecture.audit, architecture.blocked.values())
    program = _Program(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(
        ctypes.c_long(architecture.seccomp),
        ctypes.c_uint(_SET_MODE_FILTER),
        ctypes.c_uint(_FLAG_SPEC_ALLOW),
        ctypes.byref(program),
    )
    return result == 0


def _instructions(audit: int, blocked: Collection[int]) -> bytes:
    """The BPF program. A jump counts the instructions to skip; the last two are the verdicts."""
    count = len(blocked)
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _AUDIT_OFFSET),
        (_JUMP_EQUAL, 0, count + 3, audit),
        (_LOAD, 0, 0, _SYSCALL_OFFSET),
        (_JUMP_AT_LEAST, count + 1, 0, _X32_SYSCALL_BIT),
    ]
    for index, number in enumerate(blocked):
        steps.append((_JUMP_EQUAL, count - index, 0, number))
    steps += [(_RETURN, 0, 0, _RET_ALLOW), (_RETURN, 0, 0, _RET_EPERM)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
