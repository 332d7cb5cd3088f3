"""Fuzzing of every decoder: properties that the test suite checks, and coverage-guided targets that are run by hand."""
