"""Measures TURN servers side by side: CPU per relayed packet, per allocation cycle, memory and round-trip time.

``python -m bench`` starts a relayd and a coturn on one core, loads both from the other core, turn and turn about, and
prints both figures and their ratio. ``python -m bench --server HOST:PORT --user U --password P`` loads any TURN server.
Nothing of relayd is imported here: what it is measured with must not share its mistakes. Linux only (``recvmmsg``,
``/proc``).
"""
