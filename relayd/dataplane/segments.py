"""Sends several datagrams of one size as one, which the kernel cuts (UDP_SEGMENT), and knows what its refusals mean."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby

from relayd.address import TransportAddress
from relayd.dataplane.libc import SOL_UDP, UDP_SEGMENT
from relayd.dataplane.plane import BUSY
from relayd.dataplane.sockets import to_sockaddr

_REFUSED = (errno.EINVAL, errno.EMSGSIZE)  # longer than the path MTU: fragmented, so it must go by itself


def by_size(payloads: Sequence[bytes]) -> Iterable[tuple[int, Sequence[bytes]]]:
    """Neighbours of one size together, with their size. Mostly all are of one, and that is quicker found out so."""
    if len(set(map(len, payloads))) == 1:
        return [(len(payloads[0]), payloads)]
    return ((size, list(group)) for size, group in groupby(payloads, len))


def try_segments(opened: socket.socket, parts: Sequence[bytes], size: int, to: TransportAddress) -> int:
    """Send the parts joined and cut every `size` bytes. 0, or the errno."""
    control = [(SOL_UDP, UDP_SEGMENT, size.to_bytes(2, sys.byteorder))]
    sockaddr = to_sockaddr(to)
    code = 0
    for _ in range(2):  # as in Relay.send, the first attempt may only bring the news of an ICMP error
        try:
            opened.sendmsg(parts, control, 0, sockaddr)
            return 0
        except OSError as error:
            code = error.errno or errno.EIO
            if code in BUSY:
                break
    return code


def less_than(size: int, code: int, most: int) -> int:
    """How long a datagram in a run may be, `most` until now, after one of `size` was refused with that errno."""
    if code in _REFUSED:
        return size - 1
    return 0 if code == errno.EIO else most  # EIO: the device cannot do it at all
