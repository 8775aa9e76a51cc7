"""Says which value so many percent of the values do not exceed."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of them do not exceed. Raises: ValueError when there are none."""
    if not values:
        raise ValueError("there is nothing to take a percentile of")
    ordered = sorted(values)
    place = -(-len(ordered) * percent // 100)  # rounded up: what was really seen, never a value between two
    return ordered[max(0, int(place) - 1)]
