"""Declares the observers that come with relayd (`--observe`)."""

from relayd.observers.factories import HumanLogFactory, JsonLinesFactory

human_log = HumanLogFactory()
json_lines = JsonLinesFactory()
