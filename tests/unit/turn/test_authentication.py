"""Who is it: challenges, stale nonces, algorithms, user hashes, and what each answer is signed with (RFC 8489 section
9.2).
"""

from __future__ import annotations

from typing import Any

import pytest

from relayd.address import AppConnection
from relayd.stun import attributes as a
from relayd.stun.attributes import ALGORITHMS_OFFERED, Attribute
from relayd.stun.integrity import PasswordAlgorithm, userhash
from relayd.stun.message import Class, Method, decode, encode
from relayd.turn import outputs as out
from relayd.turn.settings import TurnSettings
from tests.unit.turn.parties import BOTH, OTHER_PEER, PEER, REALM, UDP_ATTRIBUTE, Client, Shell, code_of

Pair = tuple[Attribute[Any], Any]


def test_challenge() -> None:
    """A request without integrity gets a 401 with realm, nonce and algorithms, unsigned, and no state is kept."""
    shell = Shell()
    answer = Client(shell).ask(Method.ALLOCATE, [UDP_ATTRIBUTE])
    assert code_of(answer) == 401
    assert answer.get(a.REALM) == REALM
    assert answer.get(a.PASSWORD_ALGORITHMS) == ALGORITHMS_OFFERED
    nonce = answer.get(a.NONCE)
    assert nonce is not None
    assert nonce.startswith(b"obMatJos2gAAA")
    assert not answer.has_integrity
    assert a.SOFTWARE not in answer
    shell.assert_nothing_left()


def test_only_what_the_checkers_can_verify_is_offered() -> None:
    """Where keys are kept as MD5 only, MD5 alone is offered, and a client that then insists on SHA-256 gets a 400."""
    shell = Shell(TurnSettings(REALM, password_algorithms=(PasswordAlgorithm.MD5,)))
    client = Client(shell)
    assert client.ask(Method.ALLOCATE, [UDP_ATTRIBUTE]).get(a.PASSWORD_ALGORITHMS) == (PasswordAlgorithm.MD5,)
    client.algorithm = PasswordAlgorithm.SHA256
    assert code_of(client.allocate()) == 400


def test_challenge_is_small() -> None:
    """A 401 is at most seven times a bare header, so that the relay is a poor reflector even before the throttle."""
    client = Client(Shell())
    (answer,) = client.send(client.encode(Method.ALLOCATE))
    assert len(answer) <= 7 * 20


@pytest.mark.parametrize("method", [Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
def test_every_method_is_challenged(method: Method) -> None:
    """No TURN request gets past without credentials, whether there is an allocation or not."""
    shell = Shell()
    client = Client(shell)
    assert code_of(client.ask(method)) == 401
    client.allocate()
    client.nonce = None
    assert code_of(client.ask(method)) == 401
    assert shell.waiting == []


@pytest.mark.parametrize("missing", [a.USERNAME, a.REALM, a.NONCE])
def test_incomplete_credentials(missing: Attribute[Any]) -> None:
    """Integrity without USERNAME, REALM or NONCE is a 400 that gives none of them away."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    kept = [pair for pair in client.credentials() if pair[0] is not missing]
    request = encode(Method.ALLOCATE, Class.REQUEST, bytes(12), [UDP_ATTRIBUTE, *kept], key=client.key)
    (answer,) = client.send(request)
    assert code_of(decode(answer)) == 400
    assert a.NONCE not in decode(answer)
    assert a.REALM not in decode(answer)
    shell.assert_nothing_left()


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"x" * 509])
def test_unreadable_username(raw: bytes) -> None:
    """A user name that is not UTF-8 or longer than 508 bytes is a 400, and nobody is asked about it."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    opaque: Attribute[bytes] = Attribute(0x0006, "USERNAME", lambda value, _: value, lambda value, _: value)
    pairs: list[Pair] = [UDP_ATTRIBUTE, (opaque, raw), (a.REALM, REALM), (a.NONCE, client.nonce)]
    (answer,) = client.send(encode(Method.ALLOCATE, Class.REQUEST, bytes(12), pairs, key=b"k"))
    assert code_of(decode(answer)) == 400
    assert shell.waiting == []


@pytest.mark.parametrize("username", ["a\0b", "a\nb", "%n%s", "'\"; --", "\u202e" * 100])
def test_hostile_username_is_only_data(username: str) -> None:
    """Whatever a user name contains reaches the checker as it is, and comes back in no answer and no event."""
    shell = Shell()
    client = Client(shell, username=username)
    client.greet()
    shell.answers_at_once = False
    client.send(client.encode(Method.ALLOCATE, [UDP_ATTRIBUTE]))
    (request,) = shell.waiting
    assert isinstance(request, out.AuthenticateUser)
    assert request.username == username
    shell.answer_all()
    shell.run()
    assert username.encode() not in shell.sent[-1].data
    assert shell.told[-1] == out.RequestRefused(client.path, Method.ALLOCATE, 401)
    shell.assert_nothing_left()


def test_unknown_user_and_wrong_password_look_alike() -> None:
    """Both get the same 401 but for the nonce's value: the answer does not tell which part was wrong."""
    shell = Shell()
    answers = []
    for client in (Client(shell, username="nobody"), Client(shell, password="wrong")):
        client.greet()
        answer = client.ask(Method.ALLOCATE, [UDP_ATTRIBUTE], bytes(12))
        answers.append([pair for pair in answer.attributes if pair[0] != a.NONCE.code])
        assert code_of(answer) == 401
        assert a.NONCE in answer
    assert answers[0] == answers[1]


def test_wrong_realm() -> None:
    """A foreign realm is a 401 without anybody being asked."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    pairs: list[Pair] = [(a.USERNAME, "alice"), (a.REALM, "elsewhere"), (a.NONCE, client.nonce)]
    (answer,) = client.send(encode(Method.REFRESH, Class.REQUEST, bytes(12), pairs, key=client.key))
    assert code_of(decode(answer)) == 401
    assert not shell.waiting


def test_expired_nonce() -> None:
    """After its lifetime a nonce gets 438 with a new one, on every method, and the new one works."""
    shell = Shell()
    client = Client(shell)
    client.allocate([(a.LIFETIME, 3600)])
    shell.advance(3599)
    assert code_of(client.refresh((a.LIFETIME, 3600))) == 0
    shell.advance(2)
    for method in (Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND):
        answer = client.ask(method)
        assert code_of(answer) == 438
        assert answer.get(a.REALM) == REALM
        assert answer.get(a.PASSWORD_ALGORITHMS) == ALGORITHMS_OFFERED
        assert not answer.has_integrity
    client.nonce = answer.get(a.NONCE)
    assert code_of(client.permit(PEER)) == 0


@pytest.mark.parametrize("nonce", [b"", b"foreign", b"obMatJos2", b"obMatJos2gAAA", b"obMatJos2gAAA" + b"0" * 40])
def test_foreign_nonce(nonce: bytes) -> None:
    """A nonce that we did not mint gets 438 whoever the user is, and nobody is asked."""
    shell = Shell()
    client = Client(shell, username="nobody")
    client.nonce = nonce
    answer = client.ask(Method.ALLOCATE, [UDP_ATTRIBUTE])
    assert code_of(answer) == 438
    assert a.NONCE in answer
    shell.assert_nothing_left()


def test_nonce_of_someone_else() -> None:
    """A nonce works at the address that it was minted for, and at no other port or host."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    for other in (Client(shell, port=40_001), Client(shell, host="203.0.7.8")):
        other.nonce = client.nonce
        assert code_of(other.ask(Method.ALLOCATE, [UDP_ATTRIBUTE])) == 438


@pytest.mark.parametrize(
    "algorithms",
    [
        [(a.PASSWORD_ALGORITHM, 2)],
        [(a.PASSWORD_ALGORITHMS, ALGORITHMS_OFFERED)],
        [(a.PASSWORD_ALGORITHMS, (1,)), (a.PASSWORD_ALGORITHM, 1)],
        [(a.PASSWORD_ALGORITHMS, (1, 2)), (a.PASSWORD_ALGORITHM, 1)],
        [(a.PASSWORD_ALGORITHMS, ALGORITHMS_OFFERED), (a.PASSWORD_ALGORITHM, 3)],
    ],
)
def test_bid_down(algorithms: list[Pair]) -> None:
    """Algorithms that are not those we sent, or half of the pair, or a choice that was not offered: 400."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    pairs: list[Pair] = [UDP_ATTRIBUTE, (a.USERNAME, "alice"), (a.REALM, REALM), (a.NONCE, client.nonce), *algorithms]
    (answer,) = client.send(encode(Method.ALLOCATE, Class.REQUEST, bytes(12), pairs, key=client.key))
    assert code_of(decode(answer)) == 400
    shell.assert_nothing_left()


@pytest.mark.parametrize(
    ("algorithm", "sha256"), [(None, False), (PasswordAlgorithm.MD5, True), (PasswordAlgorithm.SHA256, True)]
)
def test_signature_of_answers(algorithm: PasswordAlgorithm | None, sha256: bool) -> None:
    """Successes and errors are signed with SHA-256, unless the request knew nothing of algorithms."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    client.algorithm = algorithm
    for answer in (client.ask(Method.REFRESH), client.allocate(), client.ask(Method.CREATE_PERMISSION)):
        proof = answer.proof()
        assert proof is not None
        assert proof.matches(client.key)
        assert answer.has_sha256 is sha256


def test_key_of_another_algorithm() -> None:
    """An allocation made with one algorithm can be used with the other: the key is then looked up."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    client.algorithm = PasswordAlgorithm.SHA256
    assert code_of(client.permit(PEER)) == 0
    assert code_of(client.delete()) == 0
    shell.assert_nothing_left()


def _with_userhash(client: Client, method: Method, username: str, *pairs: Pair) -> int:
    signed: list[Pair] = [*pairs, (a.USERHASH, userhash(username, REALM)), (a.REALM, REALM), (a.NONCE, client.nonce)]
    (answer,) = client.send(encode(method, Class.REQUEST, client.transaction_id(), signed, key=client.key))
    return code_of(decode(answer))


def test_userhash() -> None:
    """Where it is supported the nonce says so, and USERHASH stands for USERNAME from Allocate to the end."""
    shell = Shell(TurnSettings(REALM, transports=BOTH, supports_userhash=True))
    client = Client(shell)
    client.greet()
    assert client.nonce is not None
    assert client.nonce.startswith(b"obMatJos2wAAA")
    assert _with_userhash(client, Method.ALLOCATE, "alice", UDP_ATTRIBUTE) == 0
    assert _with_userhash(client, Method.CREATE_PERMISSION, "alice", (a.XOR_PEER_ADDRESS, PEER)) == 0
    assert code_of(client.permit(OTHER_PEER)) == 0
    assert _with_userhash(client, Method.REFRESH, "alice", (a.LIFETIME, 0)) == 0
    shell.assert_nothing_left()


def test_userhash_not_supported() -> None:
    """Where it is not supported a USERHASH is a 401 and nobody is asked."""
    shell = Shell()
    client = Client(shell)
    client.greet()
    assert _with_userhash(client, Method.ALLOCATE, "alice", UDP_ATTRIBUTE) == 401
    shell.assert_nothing_left()


def test_prepared_name_is_the_owner() -> None:
    """The name that the checker prepared owns the allocation; a client that repeats its own spelling is not slowed
    down.
    """
    shell = Shell()
    client = Client(shell)
    client.greet()
    shell.answers_at_once = False
    client.send(client.encode(Method.ALLOCATE, [UDP_ATTRIBUTE]))
    shell.core.answer(shell.waiting.pop().id, out.Authenticated("ALICE", client.key), shell.now)
    shell.run()
    opening = shell.waiting[-1]
    assert isinstance(opening, out.OpenRelay)
    assert opening.username == "ALICE"
    shell.answer_all()
    shell.run()
    assert code_of(client.permit(PEER)) == 0
    assert shell.rules.asked == [("ALICE", PEER)]


def test_another_users_credentials() -> None:
    """A valid user on someone else's allocation gets 441, signed, and the allocation is untouched; an invalid one
    401.
    """
    shell = Shell()
    client = Client(shell)
    client.allocate()
    thief = Client(shell, username="bob", password="hunter2")
    thief.nonce = client.nonce
    for answer in (thief.permit(PEER), thief.bind(0x4000, PEER), thief.refresh(), thief.delete()):
        assert code_of(answer) == 441
        assert answer.has_integrity
    thief.password = "wrong"
    assert code_of(thief.delete()) == 401
    assert code_of(client.permit(PEER)) == 0


def test_forged_integrity_on_an_allocation() -> None:
    """A wrong proof for the owner's name is a 401 that costs no look-up and changes nothing."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    shell.answers_at_once = False
    forger = Client(shell, password="wrong")
    forger.nonce = client.nonce
    for answer in (forger.permit(PEER), forger.bind(0x4000, PEER), forger.delete()):
        assert code_of(answer) == 401
    assert shell.waiting == []
    assert not shell.flows


def test_refresh_asks_again() -> None:
    """A Refresh that prolongs is checked anew: credentials that were revoked get 401, and the allocation runs out."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    del shell.passwords["alice"]
    assert code_of(client.refresh()) == 401
    assert code_of(client.permit(PEER)) == 0
    shell.advance(600)
    assert shell.events(out.AllocationEnded)[0].reason is out.EndReason.EXPIRED
    shell.assert_nothing_left()


def test_changed_password() -> None:
    """A Refresh with the new password makes the new key the one of the allocation."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    shell.passwords["alice"] = client.password = "new"
    assert code_of(client.permit(PEER)) == 401
    assert code_of(client.refresh()) == 0
    assert code_of(client.permit(PEER)) == 0


def test_unknown_attribute_after_authentication() -> None:
    """A comprehension-required attribute that we do not know is a 420 that names it, and only after the 401."""
    strange: Attribute[bytes] = Attribute(0x7777, "STRANGE", lambda value, _: value, lambda value, _: value)
    client = Client(Shell())
    assert code_of(client.ask(Method.ALLOCATE, [UDP_ATTRIBUTE, (strange, b"")])) == 401
    client.greet()
    answer = client.ask(Method.ALLOCATE, [UDP_ATTRIBUTE, (strange, b""), (strange, b"x")])
    assert code_of(answer) == 420
    assert answer.get(a.UNKNOWN_ATTRIBUTES) == (0x7777,)
    assert answer.has_integrity


def test_attributes_behind_integrity_do_nothing() -> None:
    """What an attacker appends to a signed Refresh (here LIFETIME 0) is not acted on."""
    shell = Shell()
    client = Client(shell)
    client.allocate()
    request = client.encode(Method.REFRESH)
    appended = b"\x00\x0d\x00\x04\x00\x00\x00\x00"
    length = int.from_bytes(request[2:4], "big") + len(appended)
    (answer,) = client.send(request[:2] + length.to_bytes(2, "big") + request[4:] + appended)
    assert decode(answer).get(a.LIFETIME) == 600
    assert shell.core.allocation_of(client.path) is not None


def test_fingerprint_is_returned() -> None:
    """Whoever sends FINGERPRINT gets one; whoever does not, does not."""
    client = Client(Shell())
    for wanted in (True, False):
        client.with_fingerprint = wanted
        for data in (client.send(client.encode(Method.BINDING))[0], client.send(client.encode(Method.ALLOCATE))[0]):
            assert (data[-8:-4] == b"\x80\x28\x00\x04") is wanted
            decode(data)


def test_software_only_if_wanted() -> None:
    """SOFTWARE is in every answer if the operator set it."""
    shell = Shell(TurnSettings(REALM, software="relayd"))
    client = Client(shell)
    for answer in (client.ask(Method.BINDING), client.ask(Method.ALLOCATE), client.allocate(), client.refresh()):
        assert answer.get(a.SOFTWARE) == "relayd"


def test_streams_are_served_alike() -> None:
    """The same over a stream: authentication does not depend on the way in."""
    shell = Shell()
    client = Client(shell, app_connection=AppConnection.TLS)
    assert code_of(client.allocate()) == 0
    assert shell.core.count(AppConnection.TLS) == 1
    assert code_of(client.delete()) == 0
    shell.assert_nothing_left()
