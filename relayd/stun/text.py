"""Prepares user names and passwords by the OpaqueString profile (RFC 8265 section 4.2), as RFC 8489 asks."""

from __future__ import annotations

from precis_i18n import get_profile

from relayd.errors import DecodeError

_PROFILE = get_profile("OpaqueString")


def opaque_string(text: str) -> str:
    """`text` as both sides hash and compare it: other spaces become U+0020, the rest is NFC.

    Raises DecodeError for what the profile disallows: nothing at all, control and format characters, unassigned code
    points. The error does not repeat the text, which may be a password.
    """
    # Printable ASCII is left as it is by every rule of the profile, and the general case costs hundreds of
    # microseconds.
    if text.isascii() and text.isprintable() and text:
        return text
    try:
        return str(_PROFILE.enforce(text))
    except UnicodeError:
        raise DecodeError("not an OpaqueString: empty, or with characters that RFC 8265 disallows") from None
