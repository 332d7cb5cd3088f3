"""The ways out that come with relayd."""

from relayd.peers.udp import UdpPeersFactory

udp = UdpPeersFactory()
