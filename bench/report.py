"""Turns samples into the printed table: medians over the rounds, ratios, goals. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


def percentile(ordered: Sequence[float], rank: float) -> float:
    """The value that `rank` percent of an ascending sequence do not exceed (nearest rank). Raises ValueError."""
    if not ordered:
        raise ValueError("no values")
    position = -(-len(ordered) * rank // 100)
    return ordered[max(0, min(len(ordered), int(position)) - 1)]


class Figure(NamedTuple):
    """One cell: the median of the rounds and their extremes; not `valid` where there is nothing to rely on."""

    median: float = 0.0
    low: float = 0.0
    high: float = 0.0
    valid: bool = False

    @classmethod
    def of(cls, rounds: Sequence[float | None]) -> Figure:
        """Of the rounds that are not None; invalid as a whole unless those are more than half."""
        values = [value for value in rounds if value is not None]
        if 2 * len(values) <= len(rounds):
            return cls()
        return cls(statistics.median(values), min(values), max(values), valid=True)

    def __str__(self) -> str:
        if not self.valid:
            return "invalid"
        return f"{number(self.median)} ({number(self.low)}-{number(self.high)})"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """The median of the rounds' own ratios of ours to theirs, where None is an invalid round.

    Within a round the two are measured right after each other: a machine whose speed drifts does not favour one.
    None where not more than half of the rounds have a ratio: then nothing is claimed.
    """
    each = [our / their for our, their in zip(ours, theirs, strict=True) if our is not None and their]
    return statistics.median(each) if 2 * len(each) > len(ours) else None


def verdict(value: float | None, goal: float | None) -> str:
    """`met`, `missed`, or nothing where there is nothing to say."""
    if value is None or goal is None:
        return ""
    return "met" if value <= goal else "missed"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A simple table of reStructuredText, which reads well in a terminal too."""
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    rule = "  ".join("=" * width for width in widths)

    def line(row: Sequence[str]) -> str:
        # An empty first cell would continue the row above.
        cells = [cell or ("\\" if column == 0 else "") for column, cell in enumerate(row)]
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    return "\n".join([rule, line(head), rule, *(line(row) for row in body), rule])
