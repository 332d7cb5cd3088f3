"""Ways in: the shells that hear clients, describe each as an `IClientPath`, and feed the one allocation service."""
