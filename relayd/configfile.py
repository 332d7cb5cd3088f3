"""Reads the TOML file of `--config`: the same names as on the command line, lists for what may be repeated."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection

from relayd.errors import ConfigurationError


def nearest(name: str, known: Collection[str]) -> str:
    """A hint for an unknown name: the known one that looks most like it, or all of them where none does."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known)) or 'none'}"


def read_config_file(path: str, single: Collection[str], repeatable: Collection[str]) -> dict[str, list[str]]:
    """The texts in the file by option name, each as a list (of one, for an option that is given once).

    Raises ConfigurationError, which names the file, for anything but a readable TOML table of known names with texts
    and whole numbers in it.
    """
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as why:
        raise ConfigurationError(f"{path}: cannot be read ({why.strerror}): check path and permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as why:
        raise ConfigurationError(f'{path}: not TOML ({why}): write lines such as realm = "example.org"') from None
    return {name: _texts(path, name, value, single, repeatable) for name, value in table.items()}


def _texts(path: str, name: str, value: object, single: Collection[str], repeatable: Collection[str]) -> list[str]:
    if name not in single and name not in repeatable:
        raise ConfigurationError(f"{path}: unknown key {name!r}: {nearest(name, [*single, *repeatable])}")
    values = value if isinstance(value, list) and name in repeatable else [value]
    # bool is an int to Python, and never a value of ours. The value itself is not shown: it may be a secret.
    if not all(isinstance(each, str | int) and not isinstance(each, bool) for each in values):
        wanted = "a text or a list of texts" if name in repeatable else "one text or whole number"
        raise ConfigurationError(f"{path}: the value of {name} does not fit: write {wanted}")
    return [str(each) for each in values]
