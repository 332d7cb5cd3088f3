"""The ways out that come with relayd."""

from relayd.peers.tcp import TcpPeersFactory
from relayd.peers.udp import UdpPeersFactory

udp = UdpPeersFactory()
tcp = TcpPeersFactory()
