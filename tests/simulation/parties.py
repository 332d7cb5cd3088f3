"""The three parties on the simulated network: clients that retransmit as RFC 8489 section 6.2.1 says, the relay's core
in a shell that takes its time, and a peer that sends back what it gets.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

from relayd.address import AppConnection, FiveTuple, Path, TransportAddress
from relayd.stun import attributes as a
from relayd.stun.framing import decode_channel_data, encode_channel_data
from relayd.stun.integrity import PasswordAlgorithm, long_term_key
from relayd.stun.message import Class, Message, Method, decode, encode
from relayd.turn import outputs as out
from relayd.turn.settings import TurnSettings
from tests.simulation.network import Network, Weather, World
from tests.unit.turn.parties import PEER, REALM, SERVER4, UDP_ATTRIBUTE, Pairs, Shell, code_of

RTO = 0.5  # seconds; RFC 8489 section 6.2.1
TRANSMISSIONS = 7  # Rc
LAST_WAIT = 16 * RTO  # Rm
SLOWEST_ANSWER = 0.7  # seconds that a user database or a policy may take: longer than a client's first timeout
NUMBER = 0x4000

Asking = tuple[int, Pairs]
Life = Generator[Asking, Message | None, None]


class Simulation(Shell):
    """The relay in the middle: carries out what the core asks for over the network, and answers it late."""

    def __init__(self, seed: int, weather: Weather, settings: TurnSettings | None = None) -> None:
        super().__init__(settings, seed)
        print(f"seed {seed}")  # shown when a test fails
        self.world = World(seed)
        self.network = Network(self.world, weather)
        self.now = self.world.now
        self.clients: dict[Path, SimulatedClient] = {}
        self.peer = EchoPeer(self)

    def run_until(self, until: float) -> None:
        """Live until that time: datagrams, answers and deadlines in their order."""
        while True:
            event, deadline = self.world.next(), self.core.next_timer()
            due = min(time for time in (event, deadline, until) if time is not None)
            self.now = self.world.now = max(self.now, due)
            if event is not None and event <= due:
                self.world.step()
            elif deadline is not None and deadline <= due:
                self.core.handle_timer(self.now)
            else:
                return
            self.run()

    def from_client(self, path: Path, data: bytes) -> None:
        self.core.receive(path, data, self.now)

    def from_peer_to(self, relayed: TransportAddress, data: bytes) -> None:
        """A datagram from the peer that arrives at a relayed address, if there is one still."""
        for relay, address in self.open.items():
            if address == relayed:
                self.core.receive_from_peer(relay, PEER, data, self.now)
                return

    def _perform(self, output: Any) -> None:
        if isinstance(output, out.Send | out.Deliver):
            client = self.clients.get(output.path)
            if client is not None:
                self.network.carry(client.receive, data=output.data)
        elif isinstance(output, out.SendToPeer):
            assert output.relay in self.open
            self.network.carry(self.peer.receive, self.open[str(output.relay)], data=output.data)
        elif isinstance(output, out.AuthenticateUser | out.OpenRelay):
            request = output
            self.world.after(self.world.random.random() * SLOWEST_ANSWER, lambda: self._answer(request))
        else:
            super()._perform(output)

    def _answer(self, request: out.AuthenticateUser | out.OpenRelay) -> None:
        self.core.answer(request.id, self.result(request), self.now)


class EchoPeer:
    """Sends back what it gets, to where it came from."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.received: list[tuple[TransportAddress, bytes]] = []

    def receive(self, source: TransportAddress, data: bytes) -> None:
        self.received.append((source, data))
        self._simulation.network.carry(self._simulation.from_peer_to, source, data=data)


class SimulatedClient:
    """One client. Its `life` yields requests and is sent their answers, or None for one that was never answered."""

    def __init__(self, simulation: Simulation, port: int, messages: int = 20, deletes: bool = True) -> None:
        self.simulation = simulation
        self.path = Path(FiveTuple(TransportAddress.parse("203.0.7.7", port), SERVER4, 17), AppConnection.UDP)
        self.relayed: TransportAddress | None = None
        self.codes: list[int] = []  # of the answers that counted
        self.given_up = False
        self.granted: set[TransportAddress] = set()  # by every success of an Allocate, repeated ones too
        self.sent: list[bytes] = []
        self.echoes: list[bytes] = []
        self._messages = messages
        self._deletes = deletes
        self._nonce: bytes | None = None
        self._life = self._live()
        self._asked: tuple[bytes, Asking] | None = None
        simulation.clients[self.path] = self
        self._ask(next(self._life))

    # --- the life of a client -------------------------------------------------------------------------------------

    def _live(self) -> Life:
        granted = yield Method.ALLOCATE, [UDP_ATTRIBUTE]
        if granted is None or code_of(granted) != 0:
            return
        self.relayed = granted.get(a.XOR_RELAYED_ADDRESS)
        if (yield Method.CREATE_PERMISSION, [(a.XOR_PEER_ADDRESS, PEER)]) is None:
            return
        if (yield Method.CHANNEL_BIND, [(a.CHANNEL_NUMBER, NUMBER), (a.XOR_PEER_ADDRESS, PEER)]) is None:
            return
        for number in range(self._messages):
            self.simulation.world.after(0.02 * number, partial(self._send, b"%d" % number))
        for _ in range(3):
            if (yield Method.REFRESH, [(a.LIFETIME, 600)]) is None:
                return
        if self._deletes:
            yield Method.REFRESH, [(a.LIFETIME, 0)]

    def _send(self, number: bytes) -> None:
        payload = b"%d:" % self.path.client.port + number
        self.sent.append(payload)
        if len(self.sent) % 2:
            data = encode_channel_data(NUMBER, payload, padded=False)
        else:
            pairs: Pairs = [(a.XOR_PEER_ADDRESS, PEER), (a.DATA, payload)]
            data = encode(Method.SEND, Class.INDICATION, self._identify(), pairs)
        self._transmit(data)

    # --- transactions ---------------------------------------------------------------------------------------------

    def _identify(self) -> bytes:
        return self.simulation.world.random.randbytes(12)

    def _transmit(self, data: bytes) -> None:
        self.simulation.network.carry(self.simulation.from_client, self.path, data=data)

    def _ask(self, asking: Asking) -> None:
        method, attributes = asking
        pairs, key = list(attributes), None
        if self._nonce is not None:
            pairs += [(a.USERNAME, "alice"), (a.REALM, REALM), (a.NONCE, self._nonce)]
            key = long_term_key(PasswordAlgorithm.MD5, "alice", REALM, "secret")
        transaction_id = self._identify()
        self._asked = transaction_id, asking
        self._retransmit(encode(method, Class.REQUEST, transaction_id, pairs, key=key), transaction_id, 0)

    def _retransmit(self, request: bytes, transaction_id: bytes, already: int) -> None:
        if self._asked is None or self._asked[0] != transaction_id:
            return  # answered
        if already == TRANSMISSIONS:
            self.given_up = True
            self._proceed(None)
            return
        self._transmit(request)
        wait = RTO * 2**already if already < TRANSMISSIONS - 1 else LAST_WAIT
        self.simulation.world.after(wait, lambda: self._retransmit(request, transaction_id, already + 1))

    def _proceed(self, answer: Message | None) -> None:
        self._asked = None
        try:
            self._ask(self._life.send(answer))
        except StopIteration:
            pass

    # --- what comes in --------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        if data[0] >= 0x40:
            number, payload = decode_channel_data(data)
            assert number == NUMBER
            self.echoes.append(payload)
            return
        message = decode(data)
        if message.cls is Class.INDICATION:
            assert message.get(a.XOR_PEER_ADDRESS) == PEER
            self.echoes.append(message.get(a.DATA) or b"")
            return
        if message.method == Method.ALLOCATE and message.cls is Class.SUCCESS:
            relayed = message.get(a.XOR_RELAYED_ADDRESS)
            assert relayed is not None
            self.granted.add(relayed)
        if self._asked is None or message.transaction_id != self._asked[0]:
            return  # the answer to a retransmission
        code = code_of(message)
        self.codes.append(code)
        if code in (401, 438):
            self._nonce = message.get(a.NONCE)
            self._ask(self._asked[1])
        else:
            self._proceed(message)
