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


def read_config_file(
    path: str, single: Collection[str], repeatable: Collection[str], numbers: Collection[str]
) -> dict[str, list[str]]:
    """The texts in the file by option name, each as a list (of one, for an option that is given once).

    `numbers` are those of `single` that are whole numbers in the file. Raises ConfigurationError, which names the file,
    for anything but a readable TOML table of known names with what belongs there.
    """
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as why:
        raise ConfigurationError(f"{path}: cannot be read ({why.strerror}): check path and permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as why:
        raise ConfigurationError(f'{path}: not TOML ({why}): write lines such as realm = "example.org"') from None
    for name in table:
        if name not in single and name not in repeatable:
            raise ConfigurationError(f"{path}: unknown key {name!r}: {nearest(name, [*single, *repeatable])}")
    return {name: _texts(path, name, value, name in repeatable, name in numbers) for name, value in table.items()}


def _texts(path: str, name: str, value: object, is_repeatable: bool, is_number: bool) -> list[str]:
    values = value if isinstance(value, list) and is_repeatable else [value]
    # The exact type, for a bool is an int to Python. The value itself is not shown: it may be a secret.
    if all(type(each) is (int if is_number else str) for each in values):
        return [str(each) for each in values]
    if is_number:
        wanted = f"a whole number without quotes, as in {name} = 100"
    elif is_repeatable:
        wanted = f'a list of texts in quotes, as in {name} = ["…", "…"]'
    else:
        wanted = f'one text in quotes, as in {name} = "…"'
    raise ConfigurationError(f"{path}: the value of {name} does not fit: write {wanted}")
