"""The one error of the bench: a measurement that cannot be made, and why."""


class BenchError(Exception):
    """Said to the operator as it is, in one line."""
