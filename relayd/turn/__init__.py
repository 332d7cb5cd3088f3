"""The TURN and STUN server core (RFC 8489, 8656, 5780), sans-IO."""
