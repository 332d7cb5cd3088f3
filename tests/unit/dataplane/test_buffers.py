"""The memory of the batched plane, without a socket: what the kernel would write is written by hand."""

from __future__ import annotations

import errno
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.address import TransportAddress
from relayd.dataplane.factories import BatchedPlaneFactory, PortablePlaneFactory
from relayd.errors import ConfigurationError

if BatchedPlaneFactory().unavailable() is not None:
    pytest.skip("no batched data plane here", allow_module_level=True)

from relayd.dataplane.buffers import RUN_BYTES, SLOTS, Frames, Inbox, Outbox, pack_sockaddr, unpack_sockaddr
from relayd.dataplane.libc import MMSGHDR_SIZE, MSGHDR, ffi
from relayd.dataplane.segments import less_than

addresses = st.one_of(
    st.builds(TransportAddress, st.binary(min_size=4, max_size=4), st.integers(0, 0xFFFF), st.just(0)),
    st.builds(TransportAddress, st.binary(min_size=16, max_size=16), st.integers(0, 0xFFFF), st.integers(0, 2**32 - 1)),
)


@given(addresses)
def test_sockaddr_round_trip(address: TransportAddress) -> None:
    """A sockaddr keeps address, port and scope, and is as long as the kernel's."""
    packed = pack_sockaddr(address)
    assert unpack_sockaddr(packed) == address
    assert len(packed) == (16 if len(address.ip) == 4 else 28)
    family = int.from_bytes(packed[:2], sys.byteorder)
    assert family == (socket.AF_INET if len(address.ip) == 4 else socket.AF_INET6)


def receive(inbox: Inbox, slot: int, sender: bytes, data: bytes) -> None:
    """Do what recvmmsg does with a datagram: follow the pointers of that slot's message."""
    message = bytes(ffi.buffer(inbox.messages[slot], MMSGHDR_SIZE))
    name, name_size, scatter, parts, _, _ = MSGHDR.unpack_from(message)
    ffi.memmove(ffi.cast("char *", name), sender, name_size)
    inbox.lengths[slot] = len(data)
    for part in range(parts):
        base, room = ffi.cast("uint64_t *", scatter)[2 * part : 2 * part + 2]
        ffi.memmove(ffi.cast("char *", base), data[:room], min(len(data), room))
        data = data[room:]
    assert not data


def sent(side: Inbox | Frames, slot: int) -> bytes:
    """The bytes that the kernel would gather for that slot."""
    base, size = ffi.cast("uint64_t *", side.gather[slot])[0:2]
    return bytes(ffi.buffer(ffi.cast("char *", base), size))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 200, 65_535])
def test_up(host: str, size: int) -> None:
    """In an inbox of a client port every slot gives back its datagram, its key, and the payload alone to send."""
    sender = pack_sockaddr(TransportAddress.parse(host, 9))
    inbox = Inbox(len(sender), split=True)
    for slot in (0, 1, SLOTS - 1):
        data = bytes([slot + 1]) * size
        receive(inbox, slot, sender, data)
        assert inbox.datagram(slot, size) == data
        if size >= 4:
            inbox.sizes[slot] = size - 4
            assert sent(inbox, slot) == data[4:]
            [(key, length)] = inbox.heads(slot, 1)
            assert (key, length) == (sender + data[:2], int.from_bytes(data[2:4], "big"))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_across(host: str) -> None:
    """In an inbox of a client port a payload gets another header before it, and its neighbours keep theirs."""
    sender = pack_sockaddr(TransportAddress.parse(host, 9))
    inbox = Inbox(len(sender), split=True)
    payloads = [b"one", b"", b"x" * 65_531, b"four"]
    for slot, payload in enumerate(payloads):
        receive(inbox, slot, sender, b"\x40\x00" + len(payload).to_bytes(2, "big") + payload)
        inbox.frames.headers[slot] = int.from_bytes(b"\x4f\xff\xab\xcd", sys.byteorder)
        inbox.frames.sizes[slot] = len(payload) + 4
    for slot, payload in enumerate(payloads):
        assert sent(inbox.frames, slot) == b"\x4f\xff\xab\xcd" + payload
        assert inbox.datagram(slot, len(payload) + 4) == b"\x40\x00" + len(payload).to_bytes(2, "big") + payload


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_down(host: str) -> None:
    """In an inbox of a relay a header can be put before each payload without touching the neighbours."""
    sender = pack_sockaddr(TransportAddress.parse(host, 9))
    inbox = Inbox(len(sender), split=False)
    datagrams = [bytes([slot]) * (65_535 if slot % 2 else slot) for slot in range(SLOTS)]
    for slot, data in enumerate(datagrams):
        receive(inbox, slot, sender, data)
        inbox.frames.headers[slot] = int.from_bytes(b"\x40\x01\xab\xcd", sys.byteorder)
        inbox.frames.sizes[slot] = len(data) + 4
    assert inbox.lengths.tolist() == [len(data) for data in datagrams]
    for slot, data in enumerate(datagrams):
        assert sent(inbox.frames, slot) == b"\x40\x01\xab\xcd" + data
        assert inbox.payload(slot, len(data)) == inbox.datagram(slot, len(data)) == data
    assert list(inbox.heads(3, 2)) == [(sender,), (sender,)]


def test_outbox() -> None:
    """A run carries its segment size in a control message; a single datagram carries none, whatever was there."""
    outbox = Outbox()
    outbox.put(5, 11, 16, 22, 3, 204)
    view = bytes(ffi.buffer(outbox.messages[5], MMSGHDR_SIZE))
    name, name_size, gather, count, control, room = MSGHDR.unpack_from(view)
    assert (name, name_size, gather, count, room) == (11, 16, 22, 3, socket.CMSG_SPACE(2))
    body = bytes(ffi.buffer(ffi.cast("char *", control), room))
    assert body == (
        socket.CMSG_LEN(2).to_bytes(8, sys.byteorder)
        + socket.IPPROTO_UDP.to_bytes(4, sys.byteorder)
        + (103).to_bytes(4, sys.byteorder)
        + (204).to_bytes(2, sys.byteorder)
        + bytes(6)
    )
    outbox.put(5, 11, 16, 22, 1, 204)
    assert MSGHDR.unpack_from(bytes(ffi.buffer(outbox.messages[5], MMSGHDR_SIZE)))[3:] == (1, 0, 0)


def test_segment_limit() -> None:
    """A refused run teaches what may go in one: less than that size for the path MTU, or nothing."""
    assert less_than(1473, errno.EINVAL, RUN_BYTES) == 1472
    assert less_than(1473, errno.EMSGSIZE, RUN_BYTES) == 1472
    assert less_than(200, errno.EIO, RUN_BYTES) == 0
    assert less_than(200, errno.ECONNREFUSED, RUN_BYTES) == RUN_BYTES


def test_factories_refuse_a_reactor_that_cannot_watch() -> None:
    """On a reactor without descriptors both planes say so in one line."""
    for factory in (PortablePlaneFactory(), BatchedPlaneFactory()):
        with pytest.raises(ConfigurationError, match="cannot watch descriptors"):
            factory.make(object())
