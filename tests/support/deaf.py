"""Makes a socket deaf: what the kernel has for it is discarded, so that what arrives has come another way."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_DISCARD = struct.pack("=HBBI", 0x06, 0, 0, 0)  # one instruction of classic BPF: return 0 bytes of the packet
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog: how many instructions, and where


def deafen(listening: socket.socket) -> None:
    """Let nothing in any more. Sending goes on."""
    assert sys.platform == "linux"
    instruction = ctypes.create_string_buffer(_DISCARD, len(_DISCARD))
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(1, ctypes.addressof(instruction)))
