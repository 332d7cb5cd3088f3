"""The ways in that come with relayd."""

from relayd.listeners.turn import TurnListenerFactory

turn = TurnListenerFactory()
