"""How the client reaches a server: UDP, TCP, TLS, DTLS and WebSocket, and HTTP proxies on the way."""
