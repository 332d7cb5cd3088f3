"""relayd: a TURN relay for the networks that block TURN, on Twisted."""

__version__ = "0.1.0"
