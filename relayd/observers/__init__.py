"""Observers: sinks of lifecycle events (`relayd.interfaces.IAllocationObserver`). They are told; they decide
nothing.
"""
