"""`relayd-client forward` in words: a line for what happens, and never many for the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from relayd.address import TransportAddress
from relayd.client.alternatives import Progress
from relayd.client.forward.datagrams import MAX_SENDERS, Audience, Forwarding
from relayd.client.forward.pairs import MAX_CONNECTIONS
from relayd.client.forward.reception import ReceptionAudience
from relayd.client.forward.streams import StreamAudience
from relayd.client.forward.words import Welcome
from relayd.client.relayed import RelayedPort
from relayd.client.tcp import TcpAllocation
from relayd.client.transports.uri import TurnUri
from relayd.errors import RelaydError
from relayd.turn.outputs import PeerTls

INTERVAL = 60.0  # seconds between two lines of the same kind, where what they tell of may happen all the time


class Narration(Audience, StreamAudience, ReceptionAudience, Progress):
    """Tells what happens through `say`, a line at a time."""

    def __init__(self, clock: Any, say: Callable[[str], None]) -> None:
        self._clock = clock
        self._say = say
        self._is_connected = False
        self._said_at: dict[str, float] = {}
        self.datagrams: Forwarding | None = None  # whose datagrams are counted
        self._last_count = ""
        self._counting: IDelayedCall | None = None

    def trying(self, uri: TurnUri) -> None:
        if not self._is_connected:
            self._rarely(f"connecting {uri}", f"connecting: {uri}")  # datagrams and streams may go the same way

    def failed(self, uri: TurnUri, error: RelaydError) -> None:
        if not self._is_connected:
            self._rarely(f"failed {uri} {error}", f"that does not work: {uri}: {error}")

    def opened(self, local: TransportAddress, peer: TransportAddress) -> None:
        self._say(f"listening: {local}, for {peer}")

    def allocated(self, port: RelayedPort) -> None:
        self._is_connected = True
        self._say(f"relayed address: {', '.join(map(str, port.relayed_addresses))}, by {port.uri}")

    def waiting(self, error: RelaydError, pause: float) -> None:
        self._say(f"no relay: {error}; the next attempt is in {pause:.1f} s")

    def port_opened(self, local: TransportAddress, peer: TransportAddress, tls: PeerTls | None) -> None:
        how = "over TCP" if tls is None else f"with TLS as {tls.server_name}"
        self._say(f"listening: {local}, for {peer} {how}")

    def tcp_allocated(self, allocation: TcpAllocation) -> None:
        self._is_connected = True
        self._say(f"relayed address: {', '.join(map(str, allocation.relayed_addresses))}, by {allocation.uri}, for TCP")

    def tcp_lost(self, error: RelaydError) -> None:
        self._say(f"no relay: {error}; the next connection has us look for one")

    def connection_refused(self, peer: TransportAddress, error: RelaydError) -> None:
        self._rarely(f"connection {peer} {error}", f"no connection with {peer}: {error}")

    def connections_crowded(self) -> None:
        self._rarely("connections", f"a connection was turned away: {MAX_CONNECTIONS} are the most at a time")

    def receiving(self, allocation: TcpAllocation, welcomes: Sequence[Welcome], is_tls: bool) -> None:
        self._is_connected = True
        addresses = ", ".join(map(str, allocation.relayed_addresses))
        self._say(f"relayed address: {addresses}, by {allocation.uri}, for {'TLS' if is_tls else 'TCP'} from peers")
        for each in welcomes:
            self._say(f"accepting: {each.peer}{' with TLS' if is_tls else ''}, for {each.local}")

    def caller_refused(self, peer: str, error: RelaydError) -> None:
        self._say(f"the relay does not let {peer} call us any more: {error}")

    def call_failed(self, peer: TransportAddress, error: RelaydError) -> None:
        self._rarely(f"call {peer.host} {error}", f"a connection from {peer} came to nothing: {error}")

    def sender_refused(self, error: RelaydError) -> None:
        self._rarely("refused", f"no relayed address for another sender: {error}")

    def crowded(self) -> None:
        self._rarely("crowded", f"a sender was turned away: {MAX_SENDERS} are the most at a time")

    def peer_refused(self, peer: TransportAddress, error: RelaydError) -> None:
        self._rarely(f"peer {peer}", f"the relay does not let us reach {peer} any more: {error}")

    def count(self) -> None:
        """Say what went through, where that is something new, and say so again each minute."""
        self._counting = self._clock.callLater(INTERVAL, self.count)
        self.say_count()

    def say_count(self) -> None:
        """Say what went through, where that is something new."""
        forwarding = self.datagrams
        if forwarding is None:
            return
        traffic = f"{forwarding.sent} sent, {forwarding.received} received, {forwarding.dropped} dropped"
        if traffic not in (self._last_count, "0 sent, 0 received, 0 dropped"):
            self._last_count = traffic
            senders = f"; senders: {forwarding.senders}" if forwarding.senders else ""
            self._say(f"datagrams: {traffic}{senders}")

    def end(self) -> None:
        """Count no more."""
        if self._counting is not None and self._counting.active():
            self._counting.cancel()

    def _rarely(self, kind: str, line: str) -> None:
        now = self._clock.seconds()
        if now - self._said_at.get(kind, -INTERVAL) >= INTERVAL:
            self._said_at[kind] = now
            self._say(line)
