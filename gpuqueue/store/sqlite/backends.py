"""Reads and writes the rows of backends and devices: availability, installed models, readings."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime

from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.units import from_us, to_us
from gpuqueue.store.sqlite.events import record
from gpuqueue.store.sqlite.jobs import UPKEEP_ROWS, promote_waiting_for

OVERTAKEN_US = 10_000_000  # a reading older than the recorded one by more tells of a clock that was set back


def lost(
    connection: sqlite3.Connection, name: str, *, error: str, probe_every_s: float, longest_s: float, now_us: int
) -> datetime | None:
    """Open a backend's breaker, or keep it open; returns the time of the next check if it was closed, else None.

    The wait doubles with each outage since the last success, from probe_every_s to longest_s, so that a backend that
    answers probes but fails jobs is not flooded with requests.
    """
    row = connection.execute("SELECT available, failures FROM backends WHERE name = ?", (name,)).fetchone()
    was_available, failures = (1, 0) if row is None else row
    failures += 1 if was_available else 0
    wait_us = int(min(probe_every_s * 2 ** min(failures - 1, 20), longest_s) * 1e6)
    connection.execute(
        "INSERT INTO backends (name, available, failures, since, retry_at, checked_at, error) VALUES (?, 0, ?, ?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET since = CASE WHEN available THEN excluded.since ELSE since END, available = 0, "
        "failures = excluded.failures, retry_at = excluded.retry_at, checked_at = excluded.checked_at, error = excluded.error",
        (name, failures, now_us, now_us + wait_us, now_us, error),
    )
    if not was_available:
        return None
    record(connection, "backend_lost", at_us=now_us, data={"backend": name, "error": error})
    return from_us(now_us + wait_us)


def answered(connection: sqlite3.Connection, name: str, *, worked: bool, now_us: int) -> tuple[bool, bool]:
    """Close a backend's breaker; `worked` (a job succeeded on it) also forgets its outages.

    Returns: (whether it was open, whether `wake` has jobs left that waited for it).
    """
    row = connection.execute("SELECT available, since FROM backends WHERE name = ?", (name,)).fetchone()
    is_available, since = (True, None) if row is None else row
    connection.execute(
        "INSERT INTO backends (name, checked_at) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET available = 1, "
        "retry_at = NULL, checked_at = excluded.checked_at, error = NULL, failures = CASE WHEN ? THEN 0 ELSE failures END",
        (name, now_us, int(worked)),
    )
    if not is_available:
        record(connection, "backend_recovered", at_us=now_us, data={"backend": name})
    return not is_available, since is not None and wake(connection, name)


def wake(connection: sqlite3.Connection, name: str) -> bool:
    """Make some of the jobs that waited for a backend available, if it is still up; returns whether some may be left.

    `since` stays until none is left: if the worker dies before, the next answer of the backend continues.
    """
    row = connection.execute("SELECT available FROM backends WHERE name = ?", (name,)).fetchone()
    if row is None or not row[0]:
        return False
    if promote_waiting_for(connection, name) == UPKEEP_ROWS:
        return True
    connection.execute("UPDATE backends SET since = NULL WHERE name = ?", (name,))
    return False


def note_models(connection: sqlite3.Connection, name: str, models: Mapping[str, int]) -> None:
    """Record which models a backend has on its disk."""
    connection.execute(
        "INSERT INTO backends (name, models) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET models = excluded.models",
        (name, json.dumps(models, sort_keys=True)),
    )


def publish_reading(
    connection: sqlite3.Connection,
    device: str,
    *,
    reading: Reading | None,
    residents: tuple[Resident, ...] | None,
    now_us: int,
) -> str | None:
    """Record a device's reading and loaded models; None keeps the old value. A change to or from lost is recorded as an event.

    A reading that another thread overtook, on its way here, is ignored.

    Returns: the name of that event, or None.
    """
    name: str | None = None
    row = connection.execute("SELECT reading, residents FROM devices WHERE name = ?", (device,)).fetchone()
    old_reading, old_residents = (None, None) if row is None else row
    before = json.loads(old_reading) if old_reading else {}
    if reading is not None and not 0 < before.get("at", 0) - to_us(reading.at) < OVERTAKEN_US:
        was_lost = bool(before.get("lost"))
        if was_lost != bool(reading.lost):
            name = "device_lost" if reading.lost else "device_recovered"
            record(connection, name, at_us=now_us, data={"device": device, "error": reading.lost})
        old_reading = json.dumps({**asdict(reading), "at": to_us(reading.at)})
    if residents is not None:
        old_residents = json.dumps([asdict(resident) for resident in residents])
    connection.execute(
        "INSERT INTO devices (name, reading, residents) VALUES (?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET reading = excluded.reading, residents = excluded.residents",
        (device, old_reading, old_residents),
    )
    return name
