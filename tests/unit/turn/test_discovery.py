"""Binding requests, with and without NAT behaviour discovery (RFC 5780)."""

from __future__ import annotations

from typing import Any

import pytest

from relayd.address import AppConnection, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.attributes import Attribute, ChangeRequest
from relayd.stun.message import Class, Method, decode
from relayd.turn import outputs as out
from relayd.turn.settings import TurnSettings
from tests.unit.turn.parties import REALM, SERVER4, Client, Shell, code_of

OTHER = TransportAddress.parse("192.0.9.2", 3479)
Pair = tuple[Attribute[Any], Any]


def discovering() -> Shell:
    return Shell(TurnSettings(REALM, alternates={SERVER4: OTHER}))


@pytest.mark.parametrize("app_connection", list(AppConnection))
def test_binding(app_connection: AppConnection) -> None:
    """Every way in tells a client its address, without credentials, and nothing more than that."""
    shell = Shell()
    client = Client(shell, app_connection=app_connection)
    answer = client.ask(Method.BINDING)
    assert answer.cls is Class.SUCCESS
    assert answer.attributes == [(a.XOR_MAPPED_ADDRESS.code, answer.attributes[0][1])]
    assert answer.get(a.XOR_MAPPED_ADDRESS) == client.path.client
    shell.assert_nothing_left()


def test_binding_answer_is_small() -> None:
    """A bare 20-byte request gets 32 bytes."""
    client = Client(Shell())
    assert [len(data) for data in client.send(client.encode(Method.BINDING))] == [32]


def test_binding_on_a_path_with_an_allocation() -> None:
    """Chromium sends its Binding requests on the socket of its allocation: they are answered there too."""
    client = Client(Shell())
    client.allocate()
    assert code_of(client.ask(Method.BINDING)) == 0


@pytest.mark.parametrize(
    "attribute", [(a.CHANGE_REQUEST, ChangeRequest(True, True)), (a.RESPONSE_PORT, 9), (a.PADDING, b"")]
)
def test_no_discovery(attribute: Pair) -> None:
    """Without a second address, and on streams, discovery's attributes are unknown: 420 names them."""
    for client in (Client(Shell()), Client(discovering(), app_connection=AppConnection.TCP)):
        answer = client.ask(Method.BINDING, [attribute])
        assert code_of(answer) == 420
        assert answer.get(a.UNKNOWN_ATTRIBUTES) == (attribute[0].code,)


def test_other_address() -> None:
    """Where there is a second address it is told, with where the answer came from and the mapped address in both
    forms.
    """
    shell = discovering()
    client = Client(shell)
    answer = client.ask(Method.BINDING)
    assert answer.get(a.OTHER_ADDRESS) == OTHER
    assert answer.get(a.RESPONSE_ORIGIN) == SERVER4
    assert answer.get(a.MAPPED_ADDRESS) == answer.get(a.XOR_MAPPED_ADDRESS) == client.path.client
    sent = shell.sent[-1]
    assert isinstance(sent, out.Send)
    assert (sent.source, sent.destination) == (None, None)


@pytest.mark.parametrize(
    ("change", "source"),
    [
        (ChangeRequest(False, False), None),
        (ChangeRequest(True, False), OTHER.with_port(SERVER4.port)),
        (ChangeRequest(False, True), SERVER4.with_port(OTHER.port)),
        (ChangeRequest(True, True), OTHER),
    ],
)
def test_change_request(change: ChangeRequest, source: TransportAddress | None) -> None:
    """CHANGE-REQUEST moves the answer to the other address, port or both, and RESPONSE-ORIGIN says so."""
    shell = discovering()
    answer = Client(shell).ask(Method.BINDING, [(a.CHANGE_REQUEST, change)])
    sent = shell.sent[-1]
    assert isinstance(sent, out.Send)
    assert sent.source == source
    assert answer.get(a.RESPONSE_ORIGIN) == source or SERVER4
    assert answer.get(a.OTHER_ADDRESS) == OTHER


def test_response_port() -> None:
    """RESPONSE-PORT sends the answer to another port of the same host, never to another host; port 0 is a 400."""
    shell = discovering()
    client = Client(shell)
    client.ask(Method.BINDING, [(a.RESPONSE_PORT, 9)])
    sent = shell.sent[-1]
    assert isinstance(sent, out.Send)
    assert sent.destination == client.path.client.with_port(9)
    assert code_of(client.ask(Method.BINDING, [(a.RESPONSE_PORT, 0)])) == 400


def test_padding() -> None:
    """PADDING is returned at the size it came in, so it amplifies nothing; together with RESPONSE-PORT it is a 400."""
    client = Client(discovering())
    answer = client.ask(Method.BINDING, [(a.PADDING, b"x" * 1400)])
    assert answer.get(a.PADDING) == bytes(1400)
    assert code_of(client.ask(Method.BINDING, [(a.PADDING, b""), (a.RESPONSE_PORT, 9)])) == 400


def test_malformed() -> None:
    """A malformed discovery attribute is a 400, and the answer goes back where the request came from."""
    shell = discovering()
    broken: Attribute[bytes] = Attribute(0x0003, "CHANGE-REQUEST", lambda raw, _: raw, lambda raw, _: raw)
    assert code_of(Client(shell).ask(Method.BINDING, [(a.RESPONSE_PORT, 9), (broken, b"1")])) == 400
    sent = shell.sent[-1]
    assert isinstance(sent, out.Send)
    assert sent.destination is None
    assert decode(sent.data).cls is Class.ERROR
