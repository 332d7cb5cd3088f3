"""The four system calls of the batched data plane, called through cffi in ABI mode, and the memory layouts they read.

No compiler is needed at install. Layouts are those of 64-bit Linux, where all of these are the same on every processor.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable
from typing import Any

from cffi import FFI

ffi: Any = FFI()
ffi.cdef(
    """
    int recvmmsg(int fd, void *messages, unsigned int count, int flags, void *timeout);
    int sendmmsg(int fd, void *messages, unsigned int count, int flags);
    ssize_t sendmsg(int fd, void *message, int flags);
    """
)
_library: Any = ffi.dlopen(None)

# struct msghdr: name, namelen, iov, iovlen, control, controllen. Flags follow and are never ours to set.
MSGHDR = struct.Struct("=QI4xQQQQ")
# struct mmsghdr: a msghdr of 56 bytes, then the length, then padding.
MMSGHDR_SIZE = 64
MMSGHDR_LENGTH = 56
# struct iovec: base, length.
IOVEC = struct.Struct("=QQ")
# A control message that says UDP_SEGMENT: length, level, type, bytes in each segment, padding (linux/udp.h).
SEGMENT_CONTROL = struct.Struct("=QiiH6x")
SEGMENT_CONTROL_LENGTH = 18
SOL_UDP = 17
UDP_SEGMENT = 103


def _absent(*arguments: Any) -> int:
    raise OSError(errno.ENOSYS, "the C library lacks this call")


# Called once per system call: bound here, so that no attribute is looked up on the way.
recvmmsg: Callable[..., int] = getattr(_library, "recvmmsg", _absent)
sendmmsg: Callable[..., int] = getattr(_library, "sendmmsg", _absent)
sendmsg: Callable[..., int] = getattr(_library, "sendmsg", _absent)

_allocate = ffi.new_allocator(should_clear_after_alloc=False)


def missing() -> str | None:
    """Why the batched data plane cannot run here, in one line, or None."""
    if _absent in (recvmmsg, sendmmsg, sendmsg):
        return "the C library lacks recvmmsg or sendmmsg"
    if sys.byteorder != "little":
        return "it needs a little-endian processor"
    return None


def last_error() -> int:
    """errno of the call that just failed."""
    return int(ffi.errno)


class Memory:
    """A block of memory outside Python's heap: `view` to write it, `raw` to slice bytes out of it, `at` for the kernel.

    It is not cleared, so that pages are taken from the system only where something is written.
    """

    __slots__ = ("_block", "view", "raw", "at")

    def __init__(self, size: int) -> None:
        self._block = _allocate("char[]", size)
        self.raw: Any = ffi.buffer(self._block)
        self.view = memoryview(self.raw)
        self.at = int(ffi.cast("uintptr_t", self._block))

    def pointer(self, offset: int) -> Any:
        """What a call of the library takes."""
        return self._block + offset


def segment_control(size: int) -> bytes:
    """The control message for segments of that size."""
    return SEGMENT_CONTROL.pack(SEGMENT_CONTROL_LENGTH, SOL_UDP, UDP_SEGMENT, size)
