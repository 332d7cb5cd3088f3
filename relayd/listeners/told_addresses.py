"""Gives clients of one listener an address where theirs is not seen: the one that a proxy tells, or one made up.

Each is unique. Two clients of a web proxy can have one address, and the proxy rarely tells their ports. Still each
needs a 5-tuple of its own (RFC 8656 section 2.2), or it would meet the allocation of the other.
"""

from __future__ import annotations

from hashlib import blake2b

from relayd.address import TransportAddress

LOCAL_NETWORK = bytes.fromhex("0100000000000000")  # 100::/64, the discard prefix (RFC 6666): never anybody's address

_PORTS = 0xFFFF


def local_address(endpoint: str) -> TransportAddress:
    """What stands for a listening endpoint that has no address, such as a Unix socket: another for each, always the
    same, and in `LOCAL_NETWORK`.
    """
    return TransportAddress(LOCAL_NETWORK + blake2b(endpoint.encode(), digest_size=8).digest(), 0)


class ToldAddresses:
    """`take` and `free` as clients come and go. Keeps nothing of clients that have left."""

    def __init__(self) -> None:
        self._taken: set[TransportAddress] = set()
        self._invented = 0
        self._next = 0

    def take(self, wanted: TransportAddress) -> TransportAddress | None:
        """The same address, with that port or the next one that is free; port 0 stands for any of them.

        None if all are taken.
        """
        if not wanted.port:
            self._next = self._next % _PORTS + 1
        first = wanted.port or self._next
        for offset in range(_PORTS):
            found = wanted.with_port((first + offset - 1) % _PORTS + 1)
            if found not in self._taken:
                self._taken.add(found)
                return found
        return None

    def free(self, address: TransportAddress) -> None:
        """Take back one `take`."""
        self._taken.remove(address)

    def invent(self) -> TransportAddress:
        """One that is nobody's, and is given once."""
        self._invented += 1
        return TransportAddress(LOCAL_NETWORK + self._invented.to_bytes(8), 0)

    def __len__(self) -> int:
        return len(self._taken)
