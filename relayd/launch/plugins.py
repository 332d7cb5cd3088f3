"""Finds plugins by the word that the operator wrote, and lists them for the `--help-…` options."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from twisted.plugin import getPlugins
from zope.interface.interface import InterfaceClass

from relayd.configfile import nearest
from relayd.errors import ConfigurationError

_WIDTH = 78  # characters, for terminals that nobody has widened


def all_plugins(interface: InterfaceClass) -> list[Any]:
    """Every plugin that provides `interface`, from us and from third parties."""
    return list(getPlugins(interface))  # type: ignore[arg-type]  # mypy-zope knows interfaces by name only


def find_plugin(interface: InterfaceClass, attribute: str, name: str, option: str) -> Any:
    """The first plugin whose `attribute` is `name`. Raises ConfigurationError, naming the option, if there is none."""
    found = {getattr(plugin, attribute): plugin for plugin in reversed(all_plugins(interface))}
    if name not in found:
        raise ConfigurationError(f"--{option} {name}: there is no such plugin: {nearest(name, found)}")
    return found[name]


def describe_plugins(usage: str, rows: Iterable[tuple[str, str, str]]) -> str:
    """The manual page of one `--help-…` option: how it is used, then name, argument format and help of each plugin."""
    lines = [f"Usage: {usage}", ""]
    for name, argument_format, help_text in sorted(rows):
        lines.append(f"  {name}")
        lines += textwrap.wrap(
            argument_format,
            _WIDTH,
            initial_indent="    ",
            subsequent_indent="      ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        paragraph = " ".join(help_text.split())
        lines += textwrap.wrap(paragraph, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        lines.append("")
    return "\n".join(lines)
