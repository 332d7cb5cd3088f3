"""Who may use the relay: STUN's long-term credentials (RFC 8489 section 9.2) for twisted.cred, and our checkers."""
