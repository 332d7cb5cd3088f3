"""Promises of TLS between the relay and its peers, on real sockets: who is believed, and what is said of the others."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from relayd.address import TransportAddress
from relayd.config import RelayAddress, RelaySettings
from relayd.errors import ConfigurationError, PeerNotAuthenticated, PeerUnreachable
from relayd.peers.tcp import TcpPeers, TcpPeersFactory
from relayd.tls.certificates import Certificates
from relayd.turn.outputs import PeerTls
from tests.support.chain import make_chain

from .test_tcp_peers import LOOPBACK4, NO_PLANE, PATIENCE, End, PeersCase, until

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
Key = ec.EllipticCurvePrivateKey


class Authority:
    """Issues certificates, and writes PEM files."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key, [], DAY, is_authority=True)
        self.file = self._write(f"{name}.pem", self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, *names: str, lasts: datetime.timedelta = DAY) -> tuple[Path, Path]:
        """A certificate for those names or addresses, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = self._sign(subject, key, names, lasts)
        stem = f"{names[0]}-{lasts.days}"
        return (
            self._write(f"{stem}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(
                f"{stem}.key",
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                ),
            ),
        )

    def _sign(
        self, subject: x509.Name, key: Key, names: Any, lasts: datetime.timedelta, is_authority: bool = False
    ) -> x509.Certificate:
        general = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 3 * DAY)
            .not_valid_after(NOW + lasts)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if general:
            builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, data: bytes) -> Path:
        path = self._directory / name
        path.write_bytes(data)
        return path


def copy(files: tuple[Path, ...], onto: tuple[Path, ...]) -> None:
    for source, target in zip(files, onto, strict=True):
        target.write_bytes(source.read_bytes())


class TlsPeersTest(PeersCase):
    """The relay trusts one authority, and has a certificate from it."""

    def make(self, lowest: int = 49152, highest: int = 65535) -> TcpPeers:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.authority = Authority(Path(directory.name), "authority")
        self.other_authority = Authority(Path(directory.name), "other-authority")
        certificate, key = self.authority.issue("relay.example")
        self.own = (certificate, key)
        self.certificates = Certificates()
        settings = RelaySettings(
            (RelayAddress(LOOPBACK4, LOOPBACK4),),
            lowest,
            highest,
            self.authority.file,
            certificate,
            key,
            self.certificates,
        )
        return TcpPeersFactory().make(reactor, NO_PLANE, settings)

    def serve(self, files: tuple[Path, Path], talk: Callable[[ssl.SSLSocket], Any]) -> tuple[TransportAddress, Any]:
        """A TLS peer that serves one connection in a thread; its address, and a Deferred of what `talk` gave, or of
        the error.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        context.set_alpn_protocols(["msrp"])
        listening = self.listener()

        def run() -> Any:
            accepted, _ = listening.accept()
            accepted.settimeout(PATIENCE)
            try:
                with context.wrap_socket(accepted, server_side=True) as wrapped:
                    return talk(wrapped)
            except OSError as error:
                return error

        return self.address_of(listening), deferToThread(run)

    async def test_a_peer_that_proves_its_name(self) -> None:
        """By a certificate of an authority that is trusted; bytes go both ways, and ALPN is told."""
        relay = await self.open()

        def echo(wrapped: ssl.SSLSocket) -> bytes:
            data = wrapped.recv(100)
            wrapped.sendall(data.upper())
            wrapped.unwrap()
            return data

        address, talked = self.serve(self.authority.issue("peer.example"), echo)
        connection = await relay.connect(address, PeerTls("peer.example", (b"http/1.1", b"msrp")))
        assert connection.protocol == b"msrp"
        end: Any = End()
        connection.join(end)
        connection.write(b"hello")
        assert await talked == b"hello"
        await until(lambda: end.ends)
        assert (end.data, end.ends) == (b"HELLO", ["close"])

    async def test_an_address_can_be_a_name(self) -> None:
        """Where the certificate is for the address."""
        relay = await self.open()
        address, talked = self.serve(self.authority.issue("127.0.0.1"), lambda wrapped: wrapped.recv(1))
        connection = await relay.connect(address, PeerTls("127.0.0.1"))
        connection.join(cast(Any, End()))
        connection.write(b"x")
        assert await talked == b"x"

    async def refused(self, files: tuple[Path, Path], name: str = "peer.example") -> None:
        """The connection fails as one with somebody else, who hears nothing."""
        relay = await self.open()
        address, talked = self.serve(files, lambda wrapped: wrapped.recv(1))
        with pytest.raises(PeerNotAuthenticated):
            await relay.connect(address, PeerTls(name))
        assert isinstance(await talked, OSError) or await talked == b""
        relay.close()

    async def test_a_wrong_name(self) -> None:
        """The certificate is good, for somebody else."""
        await self.refused(self.authority.issue("other.example"))

    async def test_an_expired_certificate(self) -> None:
        """It was good until yesterday."""
        await self.refused(self.authority.issue("peer.example", lasts=-DAY))

    async def test_an_authority_that_is_not_trusted(self) -> None:
        """Its chain leads nowhere, as that of a self-signed one does."""
        await self.refused(self.other_authority.issue("peer.example"))

    async def test_a_self_signed_certificate(self) -> None:
        """It is for the right name, says its owner."""
        await self.refused(self_signed(Path(self.authority.file).parent, "peer.example"))

    async def test_a_chain_with_a_gap(self) -> None:
        """Refused without the intermediate certificate that leads to the authority, and taken with it."""
        chain = make_chain(Path(self.authority.file).parent)
        settings = RelaySettings((RelayAddress(LOOPBACK4, LOOPBACK4),), peer_ca=chain.root)
        self.peers = TcpPeersFactory().make(reactor, NO_PLANE, settings)
        await self.refused((chain.leaf, chain.key), "localhost")
        relay = await self.open()
        address, talked = self.serve((chain.full, chain.key), lambda wrapped: wrapped.recv(1))
        connection = await relay.connect(address, PeerTls("localhost"))
        connection.join(cast(Any, End()))
        connection.write(b"x")
        assert await talked == b"x"

    async def answered(self, words: bytes) -> None:
        """The connection fails as one with somebody who says that to a ClientHello."""
        relay = await self.open()
        listening = self.listener()

        def talk() -> None:
            accepted, _ = listening.accept()
            with accepted:
                accepted.sendall(words)
                accepted.settimeout(PATIENCE)
                accepted.recv(1000)

        talked = deferToThread(talk)
        with pytest.raises(PeerUnreachable):
            await relay.connect(self.address_of(listening), PeerTls("peer.example"))
        await talked

    async def test_a_peer_without_tls(self) -> None:
        """It is unreachable, and not somebody else: nothing was proved either way."""
        await self.answered(b"220 mail.example ESMTP\r\n")

    async def test_a_peer_that_misses_a_certificate_of_ours(self) -> None:
        """It says so in an alert, which is no trouble with its own."""
        await self.answered(b"\x15\x03\x03\x00\x02\x02\x2a")  # RFC 8446 section 6: fatal, bad_certificate

    async def test_a_peer_that_hangs_up_in_the_handshake(self) -> None:
        """Is unreachable."""
        relay = await self.open()
        listening = self.listener()
        talked = deferToThread(lambda: listening.accept()[0].close())
        with pytest.raises(PeerUnreachable):
            await relay.connect(self.address_of(listening), PeerTls("peer.example"))
        await talked

    async def test_a_peer_that_resets_in_the_handshake(self) -> None:
        """Is unreachable."""
        relay = await self.open()
        listening = self.listener()

        def talk() -> None:
            accepted, _ = listening.accept()
            accepted.recv(1)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            accepted.close()

        talked = deferToThread(talk)
        with pytest.raises(PeerUnreachable):
            await relay.connect(self.address_of(listening), PeerTls("peer.example"))
        await talked

    async def test_a_peer_that_breaks_tls_off(self) -> None:
        """With a record that nobody has encrypted: what came before it is handed on, and the end is no orderly one."""
        relay = await self.open()

        def talk(wrapped: ssl.SSLSocket) -> bytes:
            wrapped.sendall(b"good so far")
            os.write(wrapped.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
            return wrapped.recv(1)

        address, talked = self.serve(self.authority.issue("peer.example"), talk)
        connection = await relay.connect(address, PeerTls("peer.example"))
        end: Any = End()
        connection.join(end)
        await until(lambda: end.ends)
        assert (end.data, end.ends) == (b"good so far", ["abort"])
        assert isinstance(await talked, OSError)
        assert self.receiver.lost == [connection]

    async def test_peers_that_call_with_tls(self) -> None:
        """They see the relay's certificate; without TLS they get nowhere."""
        relay = await self.open()
        relay.accepts_tls = True
        context = ssl.create_default_context(cafile=str(self.authority.file))

        def call() -> bytes:
            with (
                socket.create_connection((relay.address.host, relay.address.port), PATIENCE) as below,
                context.wrap_socket(below, server_hostname="relay.example") as wrapped,
            ):
                wrapped.sendall(b"ring")
                return wrapped.recv(100)

        called = deferToThread(call)
        await until(lambda: self.receiver.arrived)
        (connection,) = self.receiver.arrived
        end: Any = End()
        connection.join(end)
        await until(lambda: end.data == b"ring")
        connection.write(b"yes?")
        assert await called == b"yes?"
        with socket.create_connection((relay.address.host, relay.address.port), PATIENCE) as plain:
            plain.sendall(b"no TLS at all\r\n\r\n")
            assert await deferToThread(lambda: plain.recv(100)[:1]) in (b"", b"\x15")
        assert self.receiver.arrived == [connection]

    async def test_peers_that_call_and_offer_protocols(self) -> None:
        """As all of the web does: none is chosen, and they are let in like those that offer none."""
        relay = await self.open()
        relay.accepts_tls = True
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.set_alpn_protocols(["h2", "http/1.1"])

        def call() -> tuple[str | None, bytes]:
            with (
                socket.create_connection((relay.address.host, relay.address.port), PATIENCE) as below,
                context.wrap_socket(below, server_hostname="relay.example") as wrapped,
            ):
                return wrapped.selected_alpn_protocol(), wrapped.recv(100)

        called = deferToThread(call)
        await until(lambda: self.receiver.arrived or called.called)
        for connection in self.receiver.arrived:
            connection.join(End())
            connection.write(b"come in")
        assert await called == (None, b"come in")

    async def test_last_words_in_the_flight_that_ends_the_handshake(self) -> None:
        """A peer that calls, says something and closes in order, all at once, is heard by whoever is joined later; it
        is forgotten when nobody is.
        """
        relay = await self.open()
        relay.accepts_tls = True
        for is_joined in (True, False):
            self.receiver.arrived.clear()
            self.receiver.lost.clear()
            await deferToThread(self.say_at_once, relay.address, b"last words")
            await until(lambda: self.receiver.arrived)
            (connection,) = self.receiver.arrived
            await until(lambda: not connection.transport.connected)  # type: ignore[attr-defined]  # noqa: B023
            assert self.receiver.lost == []
            end: Any = End()
            if is_joined:
                connection.join(end)
                assert (end.data, end.ends) == (b"last words", ["close"])
            else:
                connection.close()
            assert self.receiver.lost == [connection]

    def say_at_once(self, relayed: TransportAddress, words: bytes) -> None:
        """Shake hands, and send what ends that together with the words and the close_notify."""
        context = ssl.create_default_context(cafile=str(self.authority.file))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="relay.example")
        with socket.create_connection((relayed.host, relayed.port), PATIENCE) as below:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    below.sendall(outgoing.read())
                    incoming.write(below.recv(65_536))
            tls.write(words)
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
            below.sendall(outgoing.read())
            while below.recv(65_536):
                pass

    async def test_a_relay_that_closes_gives_up_handshakes(self) -> None:
        """Both those that it began and those that peers did."""
        relay = await self.open()
        relay.accepts_tls = True
        listening = self.listener()
        pending = relay.connect(self.address_of(listening), PeerTls("peer.example"))
        with socket.create_connection((relay.address.host, relay.address.port), PATIENCE) as silent:
            await until(lambda: len(relay.connections) == 2)
            relay.abort()
            with pytest.raises(PeerUnreachable):
                await pending
            assert await deferToThread(lambda: ended(silent))

    async def test_renewed_files(self) -> None:
        """Whom to believe, and what is shown to peers, follows the files, for connections that are yet to come."""
        relay = await self.open()
        relay.accepts_tls = True
        files = self.other_authority.issue("relay.example"), self.other_authority.issue("peer.example")

        def call(trusted: Path) -> str:
            context = ssl.create_default_context(cafile=str(trusted))
            connected = socket.create_connection((relay.address.host, relay.address.port), PATIENCE)
            with context.wrap_socket(connected, server_hostname="relay.example") as wrapped:
                return str(wrapped.version())

        assert await deferToThread(call, self.authority.file)
        copy((*files[0], self.other_authority.file), (*self.own, self.authority.file))
        clock = Clock()
        self.certificates.start(clock)
        self.certificates.stop()
        assert await deferToThread(call, self.other_authority.file)
        address, talked = self.serve(files[1], lambda wrapped: wrapped.recv(1))
        connection = await relay.connect(address, PeerTls("peer.example"))
        connection.join(cast(Any, End()))
        connection.write(b"x")
        assert await talked == b"x"

    async def test_configuration_that_does_not_work(self) -> None:
        """One line that names the option and the file."""
        certificate, key = self.authority.issue("relay.example")
        _, other_key = self.authority.issue("other.example")
        addresses = (RelayAddress(LOOPBACK4, LOOPBACK4),)
        missing = certificate.with_name("missing.pem")
        for settings, words in [
            (RelaySettings(addresses, peer_ca=missing), "--peer-ca .*missing.pem"),
            (RelaySettings(addresses, peer_ca=key), "--peer-ca .*PEM"),
            (RelaySettings(addresses, peer_certificate=certificate), "both"),
            (RelaySettings(addresses, peer_certificate=missing, peer_key=key), "missing.pem"),
            (RelaySettings(addresses, peer_certificate=certificate, peer_key=certificate), "--peer-key .*PEM"),
            (RelaySettings(addresses, peer_certificate=certificate, peer_key=other_key), "does not belong"),
        ]:
            with pytest.raises(ConfigurationError, match=words):
                TcpPeersFactory().make(reactor, NO_PLANE, settings)


def self_signed(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate that nobody else vouches for, and its key."""
    key, certificate = directory / "self-signed.key", directory / "self-signed.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-batch"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


def ended(connected: socket.socket) -> bool:
    """Whether the other side ends the connection, in order or not."""
    try:
        return connected.recv(1) == b""
    except ConnectionResetError:
        return True
