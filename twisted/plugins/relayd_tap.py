"""Declares `twistd relayd`."""

from twisted.application.service import ServiceMaker

relayd = ServiceMaker(
    "relayd", "relayd.tap", "A TURN relay (STUN and TURN over UDP, TCP, TLS, DTLS, WebSocket).", "relayd"
)
