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
    def of(cls, values: Sequence[float], rounds: int) -> Figure:
        """Of the values of the valid rounds; invalid as a whole unless more than half of the rounds were valid."""
        if not values or 2 * len(values) <= rounds:
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


def ratio(ours: Figure, theirs: Figure) -> float | None:
    """Ours to theirs; None where one of them is invalid: then nothing is claimed."""
    if not ours.valid or not theirs.valid or theirs.median <= 0:
        return None
    return ours.median / theirs.median


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
