"""The HTTP site that a `web` listener serves beside its WebSocket."""
