"""Builds the statements that change a job's state from the table of transitions."""

from __future__ import annotations

from gpuqueue.domain.transitions import Change, Sets, Transition

_WORDS = {
    Change.NOW: "?",
    Change.GIVEN: "?",
    Change.GIVEN_OR_KEPT: "coalesce(?, {column})",
    Change.ONE_MORE: "{column} + 1",
    Change.ONE_LESS: "{column} - 1",
    Change.AS_ENQUEUED: "enqueued_at",
    Change.UNSUSPECTED: "max({column}, 0)",
    Change.CLEARED_UNLESS_RESERVED: "CASE WHEN device IS NULL THEN '' ELSE {column} END",
}


def update(transition: Transition, where: str) -> str:
    """Build the UPDATE of a transition.

    Its parameters are the transition's values, in the order of its `sets`, then those of `where`.
    """
    return f"UPDATE jobs SET state = '{transition.target}', {assignments(transition.sets)} WHERE {where}"


def assignments(sets: Sets) -> str:
    """Build the assignments to the columns, without the state."""
    return ", ".join(f"{column} = {_word(column, value)}" for column, value in sets.items())


def _word(column: str, value: Change | int | None) -> str:
    if isinstance(value, Change):
        return _WORDS[value].format(column=column)
    return "NULL" if value is None else str(value)
