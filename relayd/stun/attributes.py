"""Every attribute of STUN and TURN in one table, and how each value is read and written.

An attribute's value is coded by a pair of functions that take the transaction id besides the value, because the XOR-ed
addresses need it. Reading raises DecodeError and nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from relayd.address import Family, TransportAddress
from relayd.errors import DecodeError
from relayd.stun.integrity import PasswordAlgorithm

MAGIC_COOKIE = 0x2112A442
_COOKIE = MAGIC_COOKIE.to_bytes(4, "big")
_COOKIE_PORT = MAGIC_COOKIE >> 16
_IPV4 = int(Family.IPV4)  # plain integers: an enumeration costs as much to reach as the rest of the work
_IPV6 = int(Family.IPV6)
_ADDRESS_HEADER = struct.Struct("!HH")  # reserved byte and family, port

# RFC 8489 sections 14.3, 14.8 to 14.10, 14.14: at most 763 bytes for 127 characters; user names at most 508 bytes.
MAX_TEXT = 763
MAX_USERNAME = 508
MAX_SERVER_NAME = 253  # bytes (RFC 1035 section 2.3.4, without the length bytes at both ends)
_SERVER_NAME = re.compile("[A-Za-z0-9._:-]*")

T = TypeVar("T")


class Attribute(Generic[T]):
    """One attribute: its type, its name as in the RFC, and its codec."""

    __slots__ = ("code", "name", "decode", "encode")

    def __init__(
        self,
        code: int,
        name: str,
        decode: Callable[[bytes, bytes], T],
        encode: Callable[[T, bytes], bytes],
    ) -> None:
        self.code = code
        self.name = name
        self.decode = decode
        self.encode = encode

    def __repr__(self) -> str:
        return f"<{self.name} 0x{self.code:04x}>"


class ErrorCode(NamedTuple):
    """ERROR-CODE (RFC 8489 section 14.8)."""

    code: int
    reason: str


class AddressError(NamedTuple):
    """ADDRESS-ERROR-CODE (RFC 8656 section 18.12)."""

    family: Family
    code: int
    reason: str


class Icmp(NamedTuple):
    """ICMP (RFC 8656 section 18.13); `data` is the 32-bit field, for instance the MTU."""

    type: int
    code: int
    data: int


class ChangeRequest(NamedTuple):
    """CHANGE-REQUEST (RFC 5780 section 7.2)."""

    change_ip: bool
    change_port: bool


def _xor_key(transaction_id: bytes) -> int:
    return int.from_bytes(_COOKIE + transaction_id, "big")


def _decode_address(raw: bytes, transaction_id: bytes) -> TransportAddress:
    size = len(raw)
    if (size == 8 and raw[1] == _IPV4) or (size == 20 and raw[1] == _IPV6):
        return TransportAddress(raw[4:], raw[2] << 8 | raw[3])
    raise DecodeError("malformed address")


def _encode_address(value: TransportAddress, transaction_id: bytes) -> bytes:
    return _ADDRESS_HEADER.pack(value.family, value.port) + value.ip


def _decode_xor_address(raw: bytes, transaction_id: bytes) -> TransportAddress:
    # RFC 8489 section 14.2
    size = len(raw)
    if size == 8 and raw[1] == _IPV4:
        ip = (int.from_bytes(raw[4:], "big") ^ MAGIC_COOKIE).to_bytes(4, "big")
    elif size == 20 and raw[1] == _IPV6:
        ip = (int.from_bytes(raw[4:], "big") ^ _xor_key(transaction_id)).to_bytes(16, "big")
    else:
        raise DecodeError("malformed address")
    return TransportAddress(ip, (raw[2] << 8 | raw[3]) ^ _COOKIE_PORT)


def _encode_xor_address(value: TransportAddress, transaction_id: bytes) -> bytes:
    ip, port, _ = value
    number = int.from_bytes(ip, "big")
    if len(ip) == 4:
        return _ADDRESS_HEADER.pack(_IPV4, port ^ _COOKIE_PORT) + (number ^ MAGIC_COOKIE).to_bytes(4, "big")
    return _ADDRESS_HEADER.pack(_IPV6, port ^ _COOKIE_PORT) + (number ^ _xor_key(transaction_id)).to_bytes(16, "big")


def _sized_text(limit: int) -> Callable[[bytes, bytes], str]:
    def decode(raw: bytes, transaction_id: bytes) -> str:
        if len(raw) > limit:
            raise DecodeError("text too long")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise DecodeError("text is not UTF-8") from None

    return decode


_decode_text = _sized_text(MAX_TEXT)


def _encode_text(value: str, transaction_id: bytes) -> bytes:
    return value.encode("utf-8")


def _decode_bytes(raw: bytes, transaction_id: bytes) -> bytes:
    return raw


def _encode_bytes(value: bytes, transaction_id: bytes) -> bytes:
    return value


def _fixed_bytes(size: int) -> Callable[[bytes, bytes], bytes]:
    def decode(raw: bytes, transaction_id: bytes) -> bytes:
        if len(raw) != size:
            raise DecodeError("wrong size")
        return raw

    return decode


def _decode_nonce(raw: bytes, transaction_id: bytes) -> bytes:
    if len(raw) > MAX_TEXT:
        raise DecodeError("nonce too long")
    return raw


def _decode_u32(raw: bytes, transaction_id: bytes) -> int:
    if len(raw) != 4:
        raise DecodeError("wrong size")
    return int.from_bytes(raw, "big")


def _encode_u32(value: int, transaction_id: bytes) -> bytes:
    return value.to_bytes(4, "big")


def _decode_u16_padded(raw: bytes, transaction_id: bytes) -> int:
    # CHANNEL-NUMBER, RESPONSE-PORT: 16 bits, then 16 reserved ones
    if len(raw) != 4:
        raise DecodeError("wrong size")
    return raw[0] << 8 | raw[1]


def _encode_u16_padded(value: int, transaction_id: bytes) -> bytes:
    return struct.pack("!HH", value, 0)


def _decode_u8_padded(raw: bytes, transaction_id: bytes) -> int:
    # REQUESTED-TRANSPORT, address families: 8 bits, then 24 reserved ones
    if len(raw) != 4:
        raise DecodeError("wrong size")
    return raw[0]


def _encode_u8_padded(value: int, transaction_id: bytes) -> bytes:
    return bytes((value, 0, 0, 0))


def _decode_flag(raw: bytes, transaction_id: bytes) -> bool:
    if raw:
        raise DecodeError("a flag carries no value")
    return True


def _encode_flag(value: bool, transaction_id: bytes) -> bytes:
    return b""


def _decode_even_port(raw: bytes, transaction_id: bytes) -> bool:
    # RFC 8656 section 18.6: the first bit asks to reserve the next port
    if len(raw) != 1:
        raise DecodeError("wrong size")
    return bool(raw[0] & 0x80)


def _encode_even_port(value: bool, transaction_id: bytes) -> bytes:
    return b"\x80" if value else b"\x00"


def _decode_error_code(raw: bytes, transaction_id: bytes) -> ErrorCode:
    if len(raw) < 4 or len(raw) > 4 + MAX_TEXT:
        raise DecodeError("wrong size")
    hundreds, number = raw[2] & 7, raw[3]
    if not 3 <= hundreds <= 6 or number > 99:
        raise DecodeError("not an error code")
    return ErrorCode(hundreds * 100 + number, raw[4:].decode("utf-8", "replace"))


def _encode_error_code(value: ErrorCode, transaction_id: bytes) -> bytes:
    return bytes((0, 0, value.code // 100, value.code % 100)) + value.reason.encode("utf-8")


def _decode_address_error(raw: bytes, transaction_id: bytes) -> AddressError:
    error = _decode_error_code(b"\0\0" + raw[2:], transaction_id)
    try:
        return AddressError(Family(raw[0]), *error)
    except ValueError:
        raise DecodeError("not an address family") from None


def _encode_address_error(value: AddressError, transaction_id: bytes) -> bytes:
    return bytes((value.family, 0, value.code // 100, value.code % 100)) + value.reason.encode("utf-8")


def _decode_types(raw: bytes, transaction_id: bytes) -> tuple[int, ...]:
    if len(raw) % 2:
        raise DecodeError("wrong size")
    return struct.unpack(f"!{len(raw) // 2}H", raw)


def _encode_types(value: tuple[int, ...], transaction_id: bytes) -> bytes:
    return struct.pack(f"!{len(value)}H", *value)


def _decode_algorithms(raw: bytes, transaction_id: bytes) -> tuple[int, ...]:
    # RFC 8489 sections 14.11 and 14.12: number, parameters' length, parameters padded to four; ours have none.
    numbers = []
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise DecodeError("truncated algorithm")
        number, size = struct.unpack_from("!HH", raw, at)
        at += 4 + size + -size % 4
        if at > len(raw):
            raise DecodeError("truncated algorithm parameters")
        numbers.append(number)
    return tuple(numbers)


def _encode_algorithms(value: tuple[int, ...], transaction_id: bytes) -> bytes:
    return b"".join(struct.pack("!HH", number, 0) for number in value)


def _decode_algorithm(raw: bytes, transaction_id: bytes) -> int:
    numbers = _decode_algorithms(raw, transaction_id)
    if len(numbers) != 1:
        raise DecodeError("wrong size")
    return numbers[0]


def _encode_algorithm(value: int, transaction_id: bytes) -> bytes:
    return _encode_algorithms((value,), transaction_id)


def _decode_icmp(raw: bytes, transaction_id: bytes) -> Icmp:
    if len(raw) != 8:
        raise DecodeError("wrong size")
    return Icmp(raw[2], raw[3], int.from_bytes(raw[4:], "big"))


def _encode_icmp(value: Icmp, transaction_id: bytes) -> bytes:
    return struct.pack("!HBBI", 0, value.type, value.code, value.data)


def _decode_server_name(raw: bytes, transaction_id: bytes) -> str:
    # A name as TLS has it in server_name (RFC 6066 section 3), an IP address in text, or nothing.
    name = raw.decode("ascii", "replace")
    if len(raw) > MAX_SERVER_NAME or not _SERVER_NAME.fullmatch(name):
        raise DecodeError("no server name")
    return name


def _decode_protocols(raw: bytes, transaction_id: bytes) -> tuple[bytes, ...]:
    # As ALPN lists them (RFC 7301 section 3.1): each with its length, one byte, before it.
    protocols = []
    at = 0
    while at < len(raw):
        end = at + 1 + raw[at]
        if end == at + 1 or end > len(raw):
            raise DecodeError("malformed protocol name")
        protocols.append(raw[at + 1 : end])
        at = end
    if not protocols:
        raise DecodeError("no protocol name")
    return tuple(protocols)


def _encode_protocols(value: tuple[bytes, ...], transaction_id: bytes) -> bytes:
    return b"".join(bytes([len(protocol)]) + protocol for protocol in value)


def _decode_change_request(raw: bytes, transaction_id: bytes) -> ChangeRequest:
    flags = _decode_u32(raw, transaction_id)
    return ChangeRequest(bool(flags & 4), bool(flags & 2))


def _encode_change_request(value: ChangeRequest, transaction_id: bytes) -> bytes:
    return _encode_u32(value.change_ip << 2 | value.change_port << 1, transaction_id)


_ADDRESS = (_decode_address, _encode_address)
_XOR_ADDRESS = (_decode_xor_address, _encode_xor_address)
_TEXT = (_decode_text, _encode_text)
_OPAQUE = (_decode_bytes, _encode_bytes)
_U32 = (_decode_u32, _encode_u32)
_U16_PADDED = (_decode_u16_padded, _encode_u16_padded)
_U8_PADDED = (_decode_u8_padded, _encode_u8_padded)
_FLAG = (_decode_flag, _encode_flag)

# Comprehension-required (0x0000-0x7fff): RFC 8489 section 18.3, RFC 8656 section 18, RFC 5780 section 7
MAPPED_ADDRESS = Attribute(0x0001, "MAPPED-ADDRESS", *_ADDRESS)
CHANGE_REQUEST = Attribute(0x0003, "CHANGE-REQUEST", _decode_change_request, _encode_change_request)
USERNAME = Attribute(0x0006, "USERNAME", _sized_text(MAX_USERNAME), _encode_text)
MESSAGE_INTEGRITY = Attribute(0x0008, "MESSAGE-INTEGRITY", _fixed_bytes(20), _encode_bytes)
ERROR_CODE = Attribute(0x0009, "ERROR-CODE", _decode_error_code, _encode_error_code)
UNKNOWN_ATTRIBUTES = Attribute(0x000A, "UNKNOWN-ATTRIBUTES", _decode_types, _encode_types)
CHANNEL_NUMBER = Attribute(0x000C, "CHANNEL-NUMBER", *_U16_PADDED)
LIFETIME = Attribute(0x000D, "LIFETIME", *_U32)
XOR_PEER_ADDRESS = Attribute(0x0012, "XOR-PEER-ADDRESS", *_XOR_ADDRESS)
DATA = Attribute(0x0013, "DATA", *_OPAQUE)
REALM = Attribute(0x0014, "REALM", *_TEXT)
NONCE = Attribute(0x0015, "NONCE", _decode_nonce, _encode_bytes)
XOR_RELAYED_ADDRESS = Attribute(0x0016, "XOR-RELAYED-ADDRESS", *_XOR_ADDRESS)
REQUESTED_ADDRESS_FAMILY = Attribute(0x0017, "REQUESTED-ADDRESS-FAMILY", *_U8_PADDED)
EVEN_PORT = Attribute(0x0018, "EVEN-PORT", _decode_even_port, _encode_even_port)
REQUESTED_TRANSPORT = Attribute(0x0019, "REQUESTED-TRANSPORT", *_U8_PADDED)
DONT_FRAGMENT = Attribute(0x001A, "DONT-FRAGMENT", *_FLAG)
MESSAGE_INTEGRITY_SHA256 = Attribute(0x001C, "MESSAGE-INTEGRITY-SHA256", _fixed_bytes(32), _encode_bytes)
PASSWORD_ALGORITHM = Attribute(0x001D, "PASSWORD-ALGORITHM", _decode_algorithm, _encode_algorithm)
USERHASH = Attribute(0x001E, "USERHASH", _fixed_bytes(32), _encode_bytes)
XOR_MAPPED_ADDRESS = Attribute(0x0020, "XOR-MAPPED-ADDRESS", *_XOR_ADDRESS)
RESERVATION_TOKEN = Attribute(0x0022, "RESERVATION-TOKEN", _fixed_bytes(8), _encode_bytes)
PADDING = Attribute(0x0026, "PADDING", *_OPAQUE)
RESPONSE_PORT = Attribute(0x0027, "RESPONSE-PORT", *_U16_PADDED)
CONNECTION_ID = Attribute(0x002A, "CONNECTION-ID", *_U32)
# Comprehension-required, and ours (docs/protocol.rst): a relay that does not know them answers 420, and does not speak
# in the clear to a peer with whom TLS was wanted.
PEER_TLS = Attribute(0x7E01, "PEER-TLS", _decode_server_name, _encode_text)
PEER_ALPN = Attribute(0x7E02, "PEER-ALPN", _decode_protocols, _encode_protocols)

# Comprehension-optional (0x8000-0xffff)
ADDITIONAL_ADDRESS_FAMILY = Attribute(0x8000, "ADDITIONAL-ADDRESS-FAMILY", *_U8_PADDED)
ADDRESS_ERROR_CODE = Attribute(0x8001, "ADDRESS-ERROR-CODE", _decode_address_error, _encode_address_error)
PASSWORD_ALGORITHMS = Attribute(0x8002, "PASSWORD-ALGORITHMS", _decode_algorithms, _encode_algorithms)
ALTERNATE_DOMAIN = Attribute(0x8003, "ALTERNATE-DOMAIN", *_TEXT)
ICMP = Attribute(0x8004, "ICMP", _decode_icmp, _encode_icmp)
SOFTWARE = Attribute(0x8022, "SOFTWARE", *_TEXT)
ALTERNATE_SERVER = Attribute(0x8023, "ALTERNATE-SERVER", *_ADDRESS)
FINGERPRINT = Attribute(0x8028, "FINGERPRINT", *_U32)
RESPONSE_ORIGIN = Attribute(0x802B, "RESPONSE-ORIGIN", *_ADDRESS)
OTHER_ADDRESS = Attribute(0x802C, "OTHER-ADDRESS", *_ADDRESS)
# The code point of a draft of RFC 8656 that coturn's 4.6 client still sends.
ADDITIONAL_ADDRESS_FAMILY_DRAFT = Attribute(0x8032, "ADDITIONAL-ADDRESS-FAMILY (draft)", *_U8_PADDED)

ATTRIBUTES: dict[int, Attribute[Any]] = {
    value.code: value for value in list(globals().values()) if isinstance(value, Attribute)
}

ALGORITHMS_OFFERED = (PasswordAlgorithm.SHA256, PasswordAlgorithm.MD5)
"""What a server that knows passwords lists in PASSWORD-ALGORITHMS, the better one first (RFC 8489 section 9.2.1)."""
