"""Pauses between two of many transactions, so that other processes get the write lock meanwhile."""

from __future__ import annotations

import time

LONGEST_REST_S = 0.05


def rest(began_s: float) -> None:
    """Pause for as long as the transaction that began then has taken, LONGEST_REST_S at most."""
    # A process that requests the lock again immediately usually gets it; others would wait until everything is done.
    time.sleep(min(time.monotonic() - began_s, LONGEST_REST_S))
