"""Declares the policies that come with relayd (`--policy`)."""

from relayd.policies.redirect import RedirectFactory

redirect = RedirectFactory()
