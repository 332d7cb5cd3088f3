"""Declares the data planes of relayd (`--data-plane`)."""

from relayd.dataplane.factories import BatchedPlaneFactory, PortablePlaneFactory

batched = BatchedPlaneFactory()
portable = PortablePlaneFactory()
