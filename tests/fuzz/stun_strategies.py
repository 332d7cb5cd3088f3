"""What hypothesis makes up about STUN: values for every attribute, whole messages, and messages that are wrong."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

from relayd.address import Family, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.attributes import AddressError, Attribute, ChangeRequest, ErrorCode, Icmp

u8, u16, u32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
transactions = st.binary(min_size=12, max_size=12)
ips = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
addresses = st.builds(TransportAddress, ips, u16, st.just(0))
texts = st.text(max_size=100)
codes = st.integers(300, 699)
families = st.sampled_from(Family)
algorithms = st.lists(u16, max_size=5).map(tuple)

# All but the integrity attributes and FINGERPRINT, which are made by signing.
VALUES: dict[Attribute[Any], st.SearchStrategy[Any]] = {
    a.MAPPED_ADDRESS: addresses,
    a.CHANGE_REQUEST: st.builds(ChangeRequest, st.booleans(), st.booleans()),
    a.USERNAME: texts,
    a.ERROR_CODE: st.builds(ErrorCode, codes, texts),
    a.UNKNOWN_ATTRIBUTES: st.lists(u16, max_size=10).map(tuple),
    a.CHANNEL_NUMBER: u16,
    a.LIFETIME: u32,
    a.XOR_PEER_ADDRESS: addresses,
    a.DATA: st.binary(max_size=2000),
    a.REALM: texts,
    a.NONCE: st.binary(max_size=763),
    a.XOR_RELAYED_ADDRESS: addresses,
    a.REQUESTED_ADDRESS_FAMILY: u8,
    a.EVEN_PORT: st.booleans(),
    a.REQUESTED_TRANSPORT: u8,
    a.DONT_FRAGMENT: st.just(True),
    a.PASSWORD_ALGORITHM: u16,
    a.USERHASH: st.binary(min_size=32, max_size=32),
    a.XOR_MAPPED_ADDRESS: addresses,
    a.RESERVATION_TOKEN: st.binary(min_size=8, max_size=8),
    a.PADDING: st.binary(max_size=100),
    a.RESPONSE_PORT: u16,
    a.CONNECTION_ID: u32,
    a.PEER_TLS: st.text("abcdefghijklmnopqrstuvwxyz0123456789.-:", max_size=253),
    a.PEER_ALPN: st.lists(st.binary(min_size=1, max_size=255), min_size=1, max_size=5).map(tuple),
    a.ADDITIONAL_ADDRESS_FAMILY: u8,
    a.ADDRESS_ERROR_CODE: st.builds(AddressError, families, codes, texts),
    a.PASSWORD_ALGORITHMS: algorithms,
    a.ALTERNATE_DOMAIN: texts,
    a.ICMP: st.builds(Icmp, u8, u8, u32),
    a.SOFTWARE: texts,
    a.ALTERNATE_SERVER: addresses,
    a.RESPONSE_ORIGIN: addresses,
    a.OTHER_ADDRESS: addresses,
    a.ADDITIONAL_ADDRESS_FAMILY_DRAFT: u8,
}

pairs = st.sampled_from(list(VALUES)).flatmap(lambda attribute: st.tuples(st.just(attribute), VALUES[attribute]))
pair_lists = st.lists(pairs, max_size=8)


@st.composite
def raw_attributes(draw: st.DrawFn) -> bytes:
    """One attribute of any type and value; now and then its length lies."""
    code = draw(st.sampled_from(sorted(a.ATTRIBUTES)) | u16)
    value = draw(st.binary(max_size=40))
    length = draw(st.just(len(value)) | st.just(len(value)) | u16)
    return struct.pack("!HH", code, length) + value + draw(st.binary(min_size=4, max_size=4))[: -len(value) % 4]


@st.composite
def raw_messages(draw: st.DrawFn) -> bytes:
    """A frame that looks like STUN around attributes that need not be any."""
    body = b"".join(draw(st.lists(raw_attributes(), max_size=6)))
    length = draw(st.just(len(body)) | st.just(len(body)) | u16)
    return struct.pack("!HHI", draw(st.integers(0, 0x3FFF)), length, a.MAGIC_COOKIE) + draw(transactions) + body


@st.composite
def raw_channel_data(draw: st.DrawFn) -> bytes:
    """ChannelData as on a stream; now and then its number or its length lies."""
    payload = draw(st.binary(max_size=60))
    number = draw(st.integers(0x4000, 0x7FFF) | st.integers(0x4000, 0x4FFF) | u16)
    length = draw(st.just(len(payload)) | st.just(len(payload)) | u16)
    return struct.pack("!HH", number, length) + payload + bytes(-len(payload) % 4)


streams = st.lists(raw_messages() | raw_channel_data() | st.binary(max_size=8), max_size=6).map(b"".join)
