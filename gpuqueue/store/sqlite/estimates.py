"""Reads and writes the rows of estimates, knowing as little as possible about their meaning."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuqueue.domain.estimates import Observation, believed, observed
from gpuqueue.domain.view import Estimate

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements


def learn(connection: sqlite3.Connection, observations: Sequence[Observation], *, now_us: int) -> None:
    """Fold observations into the estimates."""
    known: dict[tuple[str, str], Estimate | None] = {}

    def before(kind: str, key: str) -> Estimate | None:
        if (kind, key) not in known:
            row = connection.execute("SELECT value, count FROM estimates WHERE kind = ? AND key = ?", (kind, key)).fetchone()
            known[kind, key] = None if row is None else Estimate(*row)
        return known[kind, key]

    for observation in observations:
        for item in observed(observation, before(observation.kind, observation.key)):
            known[item.kind, item.key] = believed(before(item.kind, item.key), item)
    connection.executemany(
        "INSERT OR REPLACE INTO estimates (kind, key, value, count, at) VALUES (?, ?, ?, ?, ?)",
        [(kind, key, found.value, found.count, now_us) for (kind, key), found in known.items() if found is not None],
    )


def read(connection: Statements) -> dict[tuple[str, str], Estimate]:
    """Return all estimates: {(kind, key): estimate}."""
    rows = connection.execute("SELECT kind, key, value, count, at FROM estimates")
    return {(kind, key): Estimate(value, count, at_us) for kind, key, value, count, at_us in rows}
