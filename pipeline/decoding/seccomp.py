"""Turns a list of system calls into a filter that refuses them to this process for good.

Which calls a decoder has no use for is written here: those that reach the network, other processes,
other programs, or what folders hold. Linux only, on processors whose numbers are known.
"""

import ctypes
import errno
import platform
import struct
import sys

# Of each kind of processor: what the kernel calls it, the number of seccomp, and those refused.
_PROCESSORS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        317,
        (
            # socket, connect, accept, sendto, sendmsg to elsewhere need one; bind, listen, accept4
            *(41, 42, 43, 49, 50, 288),
            # fork, vfork, execve, kill, ptrace, process_vm_readv and _writev, execveat
            *(57, 58, 59, 62, 101, 310, 311, 322),
            # truncate, rename, mkdir, rmdir, link, unlink, symlink, chmod, chown, mknod
            *(76, 82, 83, 84, 86, 87, 88, 90, 92, 133),
            # mkdirat, mknodat, unlinkat, renameat, linkat, symlinkat, fchmodat, renameat2
            *(258, 259, 263, 264, 265, 266, 268, 316),
            # mount, umount2, unshare, setns, bpf, io_uring_setup
            *(165, 166, 272, 308, 321, 425),
        ),
    ),
    "aarch64": (
        0xC00000B7,
        277,
        (
            # socket, bind, listen, accept, connect, accept4
            *(198, 200, 201, 202, 203, 242),
            # execve, kill, ptrace, process_vm_readv and _writev, execveat
            *(221, 129, 117, 270, 271, 281),
            # mknodat, mkdirat, unlinkat, symlinkat, linkat, renameat, truncate, fchmodat, renameat2
            *(33, 34, 35, 36, 37, 38, 45, 53, 276),
            # umount2, mount, unshare, setns, bpf, io_uring_setup
            *(39, 40, 97, 268, 280, 425),
        ),
    ),
}
_OTHER_TABLE = 0x40000000  # numbers from here on are the same calls by another name
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of the filter
_NUMBER_AT, _PROCESSOR_AT = 0, 4  # where the kernel puts what the filter looks at
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_SET_FILTER, _WITHOUT_SLOWING_DOWN = 1, 4


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_calls() -> bool:
    """From here on the calls fail with EPERM, also in threads and forks; whether that could be
    done. No new privileges may be had by then.
    """
    known = _PROCESSORS.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    processor, seccomp, refused = known
    instructions = _instructions(processor, refused)
    program = _Program(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    done: int = libc.syscall(
        ctypes.c_long(seccomp),
        ctypes.c_uint(_SET_FILTER),
        ctypes.c_uint(_WITHOUT_SLOWING_DOWN),
        ctypes.byref(program),
    )
    return done == 0


def _instructions(processor: int, refused: tuple[int, ...]) -> bytes:
    """A jump counts the instructions that it leaves out; the last two are the verdicts."""
    steps: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _PROCESSOR_AT),
        (_EQUAL, 0, len(refused) + 3, processor),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, len(refused) + 1, 0, _OTHER_TABLE),
    ]
    for index, number in enumerate(refused):
        steps.append((_EQUAL, len(refused) - index, 0, number))
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
