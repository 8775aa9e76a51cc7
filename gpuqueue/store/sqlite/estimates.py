"""Reads and writes the rows of estimates, knowing as little as possible about their meaning."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpuqueue.domain.estimates import Observation, believed
from gpuqueue.domain.view import Estimate

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements


def learn(connection: sqlite3.Connection, observations: Sequence[Observation], *, now_us: int) -> None:
    """Fold observations into the estimates."""
    known: dict[tuple[str, str], Estimate] = {}
    for observation in observations:
        key = (observation.kind, observation.key)
        if key not in known:
            row = connection.execute("SELECT value, count FROM estimates WHERE kind = ? AND key = ?", key).fetchone()
            before = None if row is None else Estimate(*row)
        else:
            before = known[key]
        known[key] = believed(before, observation)
    connection.executemany(
        "INSERT OR REPLACE INTO estimates (kind, key, value, count, at) VALUES (?, ?, ?, ?, ?)",
        [(kind, key, found.value, found.count, now_us) for (kind, key), found in known.items()],
    )


def read(connection: Statements) -> dict[tuple[str, str], Estimate]:
    """Return all estimates: {(kind, key): estimate}."""
    rows = connection.execute("SELECT kind, key, value, count FROM estimates")
    return {(kind, key): Estimate(value, count) for kind, key, value, count in rows}
