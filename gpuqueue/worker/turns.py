"""Measures how long the jobs of a queue take in turn on a device: from one's end to the next one's, whatever came between."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence

from gpuqueue.decisions.policies import YIELDING
from gpuqueue.decisions.view import serves
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.view import View
from gpuqueue.domain.yielding import yielded_to
from gpuqueue.worker.clock import Clock


class Turns:
    """Counts, for each queue, the time in which it had work that only other jobs could keep from a device.

    Such time holds all that a queue's jobs wait for: their own runs, loads, and the jobs of the queues that theirs yields to.
    Safe to call from several threads.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._view: View | None = None
        self._working: frozenset[str] = frozenset()  # queues with such work, since `_at_s`
        self._at_s = 0.0
        self._worked_s: dict[str, float] = defaultdict(float)
        self._ended_s: dict[str, float] = defaultdict(float)  # of that: when the last turn ended
        self._last_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def saw(self, view: View, holds: Mapping[str, Sequence[Hold]]) -> None:
        """Note which queues have such work from now on."""
        with self._lock:
            self._count()
            self._view = view
            self._working = frozenset(
                name
                for name, queue in view.queues.items()
                if queue.settings.gpu and (queue.running_count or (queue.waiting_count and _is_open(holds.get(name, ()))))
            )

    def ended(self, queue: str, key: str) -> tuple[float | None, float | None]:
        """End a turn of a queue, as a job of it completed; returns how long it took, None if that is not known."""
        with self._lock:
            view = self._view
            if view is None or queue not in view.queues:
                return None, None
            self._count()
            gap_s = None if key not in self._last_s else self._at_s - self._last_s[key]
            self._last_s[key] = self._at_s
            turn_s = self._worked_s[queue] - self._ended_s[queue]
            for name, item in view.queues.items():
                if item.settings.gpu and queue not in yielded_to(item.settings, view):
                    self._ended_s[name] = self._worked_s[name]
            # Every worker sees all the work, but only the ends of its own jobs.
            workers = max(1, sum(serves(worker, queue) for worker in view.workers))
            return turn_s / workers, None if gap_s is None else gap_s / workers

    def _count(self) -> None:
        now_s = self._clock.monotonic()
        for name in self._working:
            self._worked_s[name] += now_s - self._at_s
        self._at_s = now_s


def _is_open(holds: Sequence[Hold]) -> bool:
    return all(hold.plugin == YIELDING for hold in holds)
