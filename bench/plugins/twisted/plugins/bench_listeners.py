"""What the bench's own relayd can do besides."""

from bench.ordinary import OrdinaryListenerFactory

ordinary = OrdinaryListenerFactory()
