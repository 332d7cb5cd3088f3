"""The ends of relayed TCP connections (RFC 6062), and what is between two that are joined. Opens none."""
