"""What the bench's own relayd can do besides."""

from bench.unbridged import UnbridgedPlaneFactory

unbridged = UnbridgedPlaneFactory()
