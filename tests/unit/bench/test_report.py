"""The printed table of the bench: what it claims, and when it claims nothing."""

from __future__ import annotations

import pytest

from bench.report import Figure, number, percentile, ratio, table, verdict


@pytest.mark.parametrize(
    ("rank", "value"), [(0, 1.0), (1, 1.0), (10, 1.0), (11, 2.0), (50, 5.0), (90, 9.0), (99, 10.0), (100, 10.0)]
)
def test_percentiles_are_values_that_occurred(rank: float, value: float) -> None:
    """Nearest rank: never an average of two measurements."""
    assert percentile([float(each) for each in range(1, 11)], rank) == value


def test_there_is_no_percentile_of_nothing() -> None:
    """All probes lost: an error, not zero microseconds."""
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_a_figure_is_the_median_with_its_extremes() -> None:
    """One disturbed round moves the extreme and not the figure."""
    assert str(Figure.of([2.1, 9.0, 2.0])) == "2.10 (2.00-9.00)"


@pytest.mark.parametrize("rounds", [[], [None], [2.0, None, None], [2.0, None]])
def test_a_figure_needs_most_of_its_rounds(rounds: list[float | None]) -> None:
    """With half of the rounds invalid the rest is chance."""
    assert str(Figure.of(rounds)) == "invalid"


def test_a_ratio_is_made_within_each_round() -> None:
    """The machine became twice as slow from round to round, and the ratio stayed."""
    assert ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == 0.5


def test_no_ratio_is_made_of_invalid_rounds() -> None:
    """Neither side may be guessed, and nothing is divided by zero."""
    assert ratio([1.0, None, 3.0], [2.0, 2.0, 6.0]) == 0.5
    assert ratio([1.0, None, None], [2.0, 2.0, 6.0]) is None
    assert ratio([1.0, 1.0], [None, 2.0]) is None
    assert ratio([1.0], [0.0]) is None
    assert ratio([], []) is None


@pytest.mark.parametrize(
    ("value", "goal", "said"), [(0.9, 0.9, "met"), (0.91, 0.9, "missed"), (None, 0.9, ""), (3.0, None, "")]
)
def test_a_goal_is_met_or_missed_or_not_judged(value: float | None, goal: float | None, said: str) -> None:
    """A ratio that is just the goal meets it; without a ratio or a goal nothing is said."""
    assert verdict(value, goal) == said


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.50"), (2.345, "2.35"), (54.32, "54.3"), (107.4, "107"), (12345.0, "12,345")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    """More digits would claim more than was measured."""
    assert number(value) == text


def test_the_table_is_restructuredtext() -> None:
    """It can be pasted into the README: rules as wide as the columns, no trailing blanks."""
    assert table(["what", "a"], [["row", "1"], ["longer row", ""]]).splitlines() == [
        "==========  =",
        "what        a",
        "==========  =",
        "row         1",
        "longer row",
        "==========  =",
    ]
