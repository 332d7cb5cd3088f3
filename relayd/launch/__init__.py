"""The launch: from settings to a running relay, and the words that the operator reads meanwhile. See `relayd.tap`."""
