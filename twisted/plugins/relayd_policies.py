"""Declares the policies that come with relayd (`--policy`)."""

from relayd.policies.redirect import RedirectFactory
from relayd.policies.transports import TransportsFactory

redirect = RedirectFactory()
transports = TransportsFactory()
