"""opaque_string: names and passwords by RFC 8265 section 4.2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from precis_i18n import get_profile

from relayd.errors import DecodeError
from relayd.stun.text import opaque_string


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("alice", "alice"),
        ("1700000000:alice", "1700000000:alice"),
        ("%n'\"; DROP TABLE users; --", "%n'\"; DROP TABLE users; --"),
        ("\u30de\u30c8\u30ea\u30c3\u30af\u30b9", "\u30de\u30c8\u30ea\u30c3\u30af\u30b9"),
        ("correct\u3000horse", "correct horse"),
        ("e\u0301", "\u00e9"),
        ("\u03a3\u03c2", "\u03a3\u03c2"),
    ],
)
def test_prepares(text: str, prepared: str) -> None:
    """Printable ASCII stays, other spaces become U+0020, the rest is composed; letters keep their case and width."""
    assert opaque_string(text) == prepared


@pytest.mark.parametrize("text", ["", "a\0b", "a\nb", "\x7f", "\u00ad", "\u202eevil", "\ud800", "\u0378"])
def test_refuses(text: str) -> None:
    """Nothing, control and format characters, surrogates and unassigned code points are refused, and not repeated."""
    with pytest.raises(DecodeError) as caught:
        opaque_string(text)
    assert not text or text not in str(caught.value)


@given(st.text(max_size=60))
def test_gives_stable_printable_text_or_one_error(text: str) -> None:
    """For any text: DecodeError and nothing else, or a result without control characters that is its own
    preparation.
    """
    try:
        prepared = opaque_string(text)
    except DecodeError:
        return
    assert opaque_string(prepared) == prepared
    assert not any(character < " " or character == "\x7f" for character in prepared)


@given(st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1))
def test_ascii_shortcut_changes_nothing(text: str) -> None:
    """The shortcut for printable ASCII gives what the profile gives."""
    assert opaque_string(text) == get_profile("OpaqueString").enforce(text)
