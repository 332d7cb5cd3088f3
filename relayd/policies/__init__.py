"""Policies: a say in who may allocate, and whom an allocation may reach (`relayd.interfaces.IPolicy`)."""
