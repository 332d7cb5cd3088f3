"""What `relayd-client forward` does: joins local ports with peers, for applications that know nothing of TURN."""
