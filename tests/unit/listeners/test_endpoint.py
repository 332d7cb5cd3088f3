"""Promises of relayd.listeners.endpoint: the grammar, and errors that say what, where and what to do."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL.crypto import Error as CryptoError
from twisted.internet.endpoints import quoteStringArgument
from twisted.internet.error import CannotListenError, VerifyError

from relayd.address import TransportAddress
from relayd.errors import ConfigurationError
from relayd.listeners.endpoint import Endpoint, cannot_listen, split_arguments

IN_TWISTED = CannotListenError("127.0.0.1", 80, OSError(errno.EACCES, "Permission denied"))


def test_defaults() -> None:
    """A port alone listens on every IPv4 address, as in Twisted."""
    endpoint = Endpoint("udp:3478", ["interface"])
    assert endpoint.address() == TransportAddress.parse("0.0.0.0", 3478)


@pytest.mark.parametrize("description", ["udp:3478:interface=127.0.0.1", "udp:interface=127.0.0.1:port=3478"])
def test_the_port_may_be_positional_or_named(description: str) -> None:
    """Both spellings that Twisted's endpoints know are understood."""
    assert Endpoint(description, ["interface"]).address() == TransportAddress.parse("127.0.0.1", 3478)


def test_colons_of_an_ipv6_address_are_escaped() -> None:
    """`\\:` is a literal colon."""
    endpoint = Endpoint("udp:3478:interface=2001\\:db8\\:\\:1", ["interface"])
    assert endpoint.address() == TransportAddress.parse("2001:db8::1", 3478)


@given(st.text())
def test_whatever_twisted_quotes_comes_back(value: str) -> None:
    """Any value that quoteStringArgument wrote is read back unchanged."""
    quoted = quoteStringArgument(value)
    positional, options = split_arguments(f"udp:a:path={quoted}")
    assert positional == ["udp", "a"]
    assert options == {"path": value}


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("udp", "is not a port"),
        ("udp:", "is not a port"),
        ("udp:x", "is not a port"),
        ("udp:-1", "is not a port"),
        ("udp:65536", "is not a port"),
        ("udp:٣", "is not a port"),
        ("udp:1:interfaces=127.0.0.1", "did you mean interface=?"),
        ("udp:1:colour=red", "known: port=, interface="),
        ("udp:1:interface=localhost", "not an IP address"),
        ("udp:1:interface=::1", "literal colon"),
        ("udp:1:127.0.0.1", "interface="),
        ("udp:1:port=2", "without a key"),
        ("udp:1:interface=127.0.0.1:interface=127.0.0.2", "twice"),
    ],
)
def test_mistakes_are_named(description: str, words: str) -> None:
    """Each mistake is one line with the endpoint in it and a hint."""
    with pytest.raises(ConfigurationError) as mistake:
        Endpoint(description, ["interface"]).address()
    text = str(mistake.value)
    assert text.startswith(f"{description}: ")
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRINUSE, "Address already in use"), "choose another port"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "address of this machine"),
        (IN_TWISTED, "127.0.0.1 port 80"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "key.pem"), "key.pem: No such file"),
        # Twisted locks a Unix socket by a link to its process ID.
        (
            FileNotFoundError(errno.ENOENT, "No such file", "4711", None, "/no/sock.lock"),
            "tcp:80: /no/sock.lock: No such",
        ),
        (ValueError("two\nlines"), "two lines"),
        (KeyError(), "KeyError"),
        (CryptoError([("PEM routines", "", "no start line")]), "privateKey= or certKey= is no file in PEM format"),
        (VerifyError("Certificate public and private keys do not match."), "does not belong to certKey="),
    ],
)
def test_failures_to_listen_are_one_line(error: Exception, words: str) -> None:
    """Whatever an endpoint fails with becomes one line that says what, where and what to do."""
    text = str(cannot_listen("tcp:80", error))
    assert text.startswith("tcp:80: ")
    assert words in text
    assert "\n" not in text
