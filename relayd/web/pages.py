"""The pages of the site: what is where. Where TURN is spoken is not decided here but by the listener."""

from __future__ import annotations

from http import HTTPStatus

from twisted.web.resource import Resource

from relayd.config import ListenerSettings
from relayd.web.access import ForOperator
from relayd.web.demo import add_demo
from relayd.web.files import StaticFile
from relayd.web.metrics import Metrics
from relayd.web.status import StatusDocument
from relayd.web.texts import PlainText


def make_pages(settings: ListenerSettings) -> Resource:
    """The root of the site; the listener adds where it speaks TURN."""
    root = PlainText(HTTPStatus.NOT_FOUND, "There is nothing here.\n")
    root.putChild(b"healthz", PlainText(HTTPStatus.OK, "ok\n"))
    add_demo(root)
    if settings.status is not None and settings.status_from:
        _add_status(root, settings)
    return root


def _add_status(root: Resource, settings: ListenerSettings) -> None:
    """The pages for the operator. What they are made of is in every installation, and no secret."""
    settings.status.statistics.keep_history()
    pages = {
        b"": StaticFile("status.html"),
        b"status.json": StatusDocument(settings.status),
        b"metrics": Metrics(settings.status),
    }
    for path, page in pages.items():
        root.putChild(path, ForOperator(settings.status_from, page))
    for name in ("status.css", "status.js", "plot.js"):
        root.putChild(name.encode("ascii"), StaticFile(name))
