"""The TURN and STUN cores, server and client (RFC 8489, 8656, 5780), sans-IO."""
