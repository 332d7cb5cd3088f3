"""TLS on streams: certificates that are read and renewed, who is believed, and how it ends."""
