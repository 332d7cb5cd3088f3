"""A TURN client that sets up what is then measured: allocations, permissions, channels. Blocks on each request."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
from typing import Protocol

from bench import wire
from bench.errors import BenchError
from bench.mmsg import IP_PKTINFO, packet_info

CHANNEL = 0x4000
REPLY_SECONDS = 0.5
ATTEMPTS = 5
"""Over UDP; 2.5 s without an answer on an idle machine is not loss."""
SOCKET_BUFFER = 8 << 20
"""Bytes; the generator must never be the one that drops."""
_SO_RCVBUFFORCE = 33
UDP, TCP = bytes((17, 0, 0, 0)), bytes((6, 0, 0, 0))
"""REQUESTED-TRANSPORT."""


class Exchange(Protocol):
    """How requests reach the server."""

    def exchange(self, data: bytes) -> bytes:
        """Send a request and wait for its response. Raises BenchError when none comes."""

    def close(self) -> None:
        """Give the socket back, unless it is shared."""


class DatagramExchange:
    """Over a UDP socket, which many clients may share when each has its own `source` address."""

    def __init__(self, sock: socket.socket, server: tuple[str, int], source: str | None = None) -> None:
        self._sock = sock
        self._server = server
        self._control = [(socket.IPPROTO_IP, IP_PKTINFO, packet_info(source))] if source else []

    def exchange(self, data: bytes) -> bytes:
        self._sock.settimeout(REPLY_SECONDS)
        for _ in range(ATTEMPTS):
            self._sock.sendmsg([data], self._control, 0, self._server)
            with contextlib.suppress(TimeoutError):
                while True:
                    reply = self._sock.recv(2048)
                    if reply[8:20] == data[8:20]:
                        return reply
        raise BenchError(f"no answer from {self._server[0]}:{self._server[1]} over UDP")

    def close(self) -> None:
        """Leaves the socket to its owner."""


class StreamExchange:
    """Over a TCP or TLS connection of its own."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(REPLY_SECONDS * ATTEMPTS)

    def exchange(self, data: bytes) -> bytes:
        try:
            self.sock.sendall(data)
            return self._read_message()
        except OSError as error:
            raise BenchError(f"no answer from the server over a stream: {error}") from error

    def _read_message(self) -> bytes:
        head = self._read(4)
        return head + self._read(wire.message_size(head) - 4)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise BenchError("the server closed the connection")
            data += piece
        return data

    def close(self) -> None:
        self.sock.close()


class Allocation:
    """One allocation, by way of an `Exchange`."""

    def __init__(self, way: Exchange, username: str, password: str) -> None:
        self.way = way
        self._username = username
        self._password = password
        self._credentials: wire.Credentials | None = None
        self.relayed = ("", 0)

    def allocate(self, transport: bytes = UDP) -> None:
        """Learn realm and nonce, then allocate; `relayed` is the address."""
        attributes = [(wire.REQUESTED_TRANSPORT, transport)]
        challenge = wire.parse(self.way.exchange(wire.request(wire.ALLOCATE, attributes)))
        self._credentials = answer_challenge(challenge, self._username, self._password)
        answer = self._request(wire.ALLOCATE, attributes)
        try:
            self.relayed = wire.address(answer.attributes[wire.XOR_RELAYED_ADDRESS])
        except KeyError:
            raise BenchError("the server allocated without telling the relayed address") from None

    def permit(self, peer: tuple[str, int]) -> None:
        """CreatePermission."""
        self._request(wire.CREATE_PERMISSION, [(wire.XOR_PEER_ADDRESS, wire.xor_address(peer))])

    def bind(self, peer: tuple[str, int]) -> None:
        """ChannelBind of `CHANNEL`."""
        number = CHANNEL.to_bytes(2, "big") + b"\0\0"
        self._request(
            wire.CHANNEL_BIND, [(wire.CHANNEL_NUMBER, number), (wire.XOR_PEER_ADDRESS, wire.xor_address(peer))]
        )

    def connect(self, peer: tuple[str, int]) -> bytes:
        """Connect (RFC 6062); gives the CONNECTION-ID."""
        answer = self._request(wire.CONNECT, [(wire.XOR_PEER_ADDRESS, wire.xor_address(peer))])
        return answer.attributes[wire.CONNECTION_ID]

    def bind_connection(self, way: Exchange, number: bytes) -> None:
        """ConnectionBind on a connection of its own, which carries the peer's bytes from then on."""
        self._request(wire.CONNECTION_BIND, [(wire.CONNECTION_ID, number)], way)

    def delete(self) -> None:
        """Refresh with lifetime 0, then let go of the connection."""
        self._request(wire.REFRESH, [(wire.LIFETIME, bytes(4))])
        self.way.close()

    def _request(self, method: int, attributes: list[tuple[int, bytes]], way: Exchange | None = None) -> wire.Message:
        answer = wire.parse((way or self.way).exchange(wire.request(method, attributes, self._credentials)))
        if answer.kind != method | wire.SUCCESS:
            raise BenchError(f"the server answered a request of method {method} with error {answer.error}")
        return answer


def answer_challenge(challenge: wire.Message, username: str, password: str) -> wire.Credentials:
    """Credentials for the realm and nonce of a 401. Raises BenchError if it is none."""
    if challenge.error != 401:
        raise BenchError(
            f"the server answered an Allocate without credentials with {challenge.error or 'success'}, not 401"
        )
    try:
        realm, nonce = challenge.attributes[wire.REALM], challenge.attributes[wire.NONCE]
    except KeyError:
        raise BenchError("the server sent a 401 without REALM or NONCE") from None
    return wire.Credentials(username.encode(), realm, nonce, wire.long_term_key(username, realm, password))


def udp_socket(host: str = "0.0.0.0", port: int = 0) -> socket.socket:
    """A bound UDP socket with a receive buffer as large as it may be."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, SOCKET_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
    sock.bind((host, port))
    return sock


def stream_socket(server: tuple[str, int], tls: bool, source: str | None = None) -> socket.socket:
    """A connection, from a local address of choice. The certificate is not checked: a bench server's is made for the
    day, nothing secret is sent.
    """
    try:
        sock = socket.create_connection(
            server, timeout=REPLY_SECONDS * ATTEMPTS, source_address=(source, 0) if source else None
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not tls:
            return sock
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(sock)
    except OSError as error:
        raise BenchError(f"cannot connect to {server[0]}:{server[1]}: {error}") from error


def loopback_source(index: int) -> str:
    """The address of the index-th client of a server on loopback: 127.0.1.1, 127.0.1.2, ..."""
    return f"127.0.{1 + index // 250}.{1 + index % 250}"


def is_loopback(host: str) -> bool:
    """Whether many clients can share a socket by choosing source addresses."""
    return host.startswith("127.")


def local_address(server: tuple[str, int]) -> str:
    """Where peers of that server live: on loopback an address of their own, else the one that routes to the server."""
    if is_loopback(server[0]):
        return "127.0.0.3"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(server)
        return str(sock.getsockname()[0])


def raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have; inherited by the servers."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def random_payload(size: int) -> bytes:
    """Bytes that no server can have come up with by itself."""
    return os.urandom(size)
