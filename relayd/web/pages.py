"""The pages of the site: what is where. Where TURN is spoken is not decided here but by the listener."""

from __future__ import annotations

from http import HTTPStatus

from twisted.web.resource import Resource

from relayd.config import ListenerSettings
from relayd.web.texts import PlainText


def make_pages(settings: ListenerSettings) -> Resource:
    """The root of the site; the listener adds where it speaks TURN."""
    root = PlainText(HTTPStatus.NOT_FOUND, "There is nothing here.\n")
    root.putChild(b"healthz", PlainText(HTTPStatus.OK, "ok\n"))
    return root
