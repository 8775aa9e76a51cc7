"""Owns the floor that speed is measured against: the same work in plain `sqlite3`, as small as it can be written."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

PAYLOAD = '{"text":"' + "x" * 188 + '"}'  # 200 bytes


class Floor:
    """One table, an integer key, a partial index, a held connection in WAL mode, one transaction a statement."""

    def __init__(self, path: Path, *, synchronous: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute(f"PRAGMA synchronous = {synchronous}")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, queue TEXT, task TEXT, state TEXT, priority INTEGER, "
            "scheduled_at INTEGER, attempt INTEGER DEFAULT 0, finished_at INTEGER, payload TEXT)"
        )
        self.connection.execute(
            "CREATE INDEX IF NOT EXISTS ready ON jobs (queue, priority, scheduled_at, id) WHERE state = 'available'"
        )

    def insert(self) -> None:
        self.connection.execute(
            "INSERT INTO jobs (queue, task, state, priority, scheduled_at, payload) VALUES (?, ?, 'available', ?, ?, ?)",
            ("work", "tasks.noop", 0, time.time_ns() // 1000, PAYLOAD),
        )

    def claim(self) -> tuple[int, str, str] | None:
        row: tuple[int, str, str] | None = self.connection.execute(
            "UPDATE jobs SET state = 'running', attempt = attempt + 1 WHERE id = (SELECT id FROM jobs WHERE state = 'available' "
            "AND queue = 'work' ORDER BY priority, scheduled_at, id LIMIT 1) RETURNING id, task, payload"
        ).fetchone()
        return row

    def acknowledge(self, row: tuple[int, str, str]) -> None:
        self.connection.execute(
            "UPDATE jobs SET state = 'completed', finished_at = ? WHERE id = ?", (time.time_ns() // 1000, row[0])
        )

    def claim_and_acknowledge(self) -> bool:
        row = self.claim()
        if row is not None:
            self.acknowledge(row)
        return row is not None


def seconds_each(work: Callable[[], object], count: int) -> float:
    """Return how long one call took, over `count` calls."""
    began_s = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - began_s) / count


def ratio_in_turn(ours: Callable[[], float], floor: Callable[[], float], *, rounds: int) -> tuple[float, float, float]:
    """Measure both in turn; returns (median ratio ours/floor, median ours, median floor)."""
    pairs = [(ours(), floor()) for _ in range(rounds)]
    return median(a / b for a, b in pairs), median(a for a, _ in pairs), median(b for _, b in pairs)
