"""The ways in that come with relayd."""

from relayd.listeners.turn import TurnListenerFactory
from relayd.listeners.web_factory import AnyListenerFactory, WebListenerFactory

turn = TurnListenerFactory()
web = WebListenerFactory("relayd.web.pages.make_pages")
any_kind = AnyListenerFactory("relayd.web.pages.make_pages")
