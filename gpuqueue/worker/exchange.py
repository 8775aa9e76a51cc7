"""Owns the exchange of jobs without a device: ended attempts out, new claims in, in one transaction; runs none.

What ended is written together with the next claim, at the latest EXCHANGE_S after it ended or when nothing claimed is
left. Each runner says how many more jobs it has room for, and gets those of its kind.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from gpuqueue.domain.claim import Capacity
from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.job import Lease
from gpuqueue.domain.outcomes import Outcome, Postponed
from gpuqueue.domain.units import to_us
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.log import WorkerLog

EXCHANGE_S = 0.01
logger = logging.getLogger("gpuqueue.worker")


class Runner(Protocol):
    """Runs claimed jobs of one kind."""

    def room(self) -> int:
        """How many more jobs it takes now."""

    def take(self, leases: Sequence[Lease]) -> None:
        """Take claimed jobs, and hand each one's outcome to the exchange when it has ended."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing that it took runs or waits."""


class Exchange:
    """`kind_of` says which kind of runner a task needs."""

    def __init__(self, dispatcher: Dispatcher, *, kind_of: Callable[[str], str], log: WorkerLog) -> None:
        self._dispatcher = dispatcher
        self._kind_of = kind_of
        self._log = log
        self._ended: deque[Outcome] = deque()
        self._unwritten_count = 0
        self._lock = threading.Lock()
        self._exchanged_at_s = 0.0
        self._stopping = False
        self._runners: dict[str, Runner] = {}
        self._claiming: Counter[str] = Counter()  # the room that exchanges under way are about to fill, by kind

    def add_runner(self, kind: str, runner: Runner) -> None:
        """Claim for this runner too."""
        self._runners[kind] = runner

    @property
    def is_idle(self) -> bool:
        """Whether nothing is claimed, runs, or waits to be written."""
        if not all(runner.is_idle for runner in self._runners.values()):  # first: what ends is added before its runner is idle
            return False
        with self._lock:
            return not self._ended and not self._unwritten_count

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._exchanged_at_s > EXCHANGE_S

    def add(self, outcome: Outcome) -> None:
        """Take the outcome of an ended attempt."""
        self._ended.append(outcome)

    def give_back(self, leases: Sequence[Lease]) -> None:
        """Take claimed jobs that have not begun, to return them unspent."""
        self._ended.extend(Postponed(lease, "released", to_us(lease.started_at), spent=False) for lease in leases)

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True

    def exchange(self) -> int:
        """Write what ended and claim what there is room for; returns how many were claimed. Raises: StoreError."""
        ended: list[Outcome] = []
        with self._lock:
            while self._ended:
                ended.append(self._ended.popleft())
            self._unwritten_count += len(ended)
            free = self._reserve_room()
        try:
            if not ended and not free:
                return 0
            self._exchanged_at_s = time.monotonic()
            late, leases = self._dispatcher.exchange(ended, capacity=Capacity(free, self._kind_of))
            taken: dict[str, list[Lease]] = {}
            for lease in leases:
                taken.setdefault(self._kind_of(lease.task), []).append(lease)
            for kind, mine in taken.items():
                self._runners[kind].take(mine)
        except StoreError:
            self._ended.extend(ended)
            raise
        finally:
            with self._lock:
                self._unwritten_count -= len(ended)
                self._claiming.subtract(free)
        for lease in late:
            self._log.late(lease)
        return len(leases)

    def _reserve_room(self) -> dict[str, int]:
        """Take all the room there is for one exchange, so that another at the same time does not fill it too."""
        if self._stopping:
            return {}
        room = {kind: runner.room() - self._claiming[kind] for kind, runner in self._runners.items()}
        free = {kind: count for kind, count in room.items() if count > 0}
        self._claiming.update(free)
        return free

    def exchange_or_keep(self) -> None:
        """Exchange; where the store cannot be written now, keep what ended for the next time."""
        try:
            self.exchange()
        except StoreError as error:
            logger.warning("%s; the outcome is kept and written later", error)
