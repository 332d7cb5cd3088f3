"""The STUN wire format (RFC 8489): header, attributes, integrity, framing. No state, no policy."""
