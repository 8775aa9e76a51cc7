"""Buffers the output of running attempts for some milliseconds, then writes it to the store.

What the store cannot take now is written later. One attempt's output that cannot be written for what it is is dropped with a
log line, and hinders no other attempt's.
"""

from __future__ import annotations

import logging
import threading

from gpuqueue.domain.errors import StoreError, describe
from gpuqueue.domain.job import Lease
from gpuqueue.domain.outcomes import Report
from gpuqueue.store.store import Store
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.service_thread import ServiceThread

GATHER_S = 0.06
logger = logging.getLogger("gpuqueue.worker")
Key = tuple[int, int]  # (job, lease)


class _Buffer:
    """The output of one attempt since the last write."""

    __slots__ = ("first_us", "lines", "progress", "texts", "tokens")

    def __init__(self) -> None:
        self.tokens: int | None = None
        self.first_us: int | None = None  # when the first of them came
        self.texts: list[str] = []
        self.lines: list[tuple[int, str]] = []
        self.progress: tuple[float, str] | None = None

    def put_before(self, later: _Buffer) -> None:
        """Append later output, when this could not be written."""
        self.texts += later.texts
        self.lines += later.lines
        self.progress = later.progress or self.progress
        self.tokens = self.tokens if later.tokens is None else later.tokens
        self.first_us = self.first_us or later.first_us


class Output:
    """Buffers the output of attempts; one thread writes all buffers in one transaction, GATHER_S after the first output.

    Adding output never waits for the database, so it is safe on an event loop.
    """

    def __init__(self, store: Store, clock: Clock, orders: Orders) -> None:
        self._store = store
        self._clock = clock
        self._buffers: dict[Key, _Buffer] = {}
        self._continuing: dict[Key, int] = {}  # attempts with output that started under an earlier lease
        self._lock = threading.Lock()  # held only briefly
        self._writing = threading.Lock()  # held during a write, so later output cannot overtake earlier output
        self._has_words = threading.Event()
        self._stopped = threading.Event()
        self.thread = ServiceThread("output", self._run, clock, orders)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._has_words.set()
        self.thread.join()

    def emit(self, lease: Lease, text: str) -> None:
        """Add a piece of an attempt's output."""
        with self._lock:
            self._of(lease).texts.append(text)
        self._has_words.set()

    def log(self, lease: Lease, at_us: int, message: str) -> None:
        """Add a line of an attempt's log."""
        with self._lock:
            self._of(lease).lines.append((at_us, message))
        self._has_words.set()

    def progress(self, lease: Lease, fraction: float, note: str) -> None:
        """Set an attempt's progress; only the latest is written."""
        with self._lock:
            self._of(lease).progress = (fraction, note)
        self._has_words.set()

    def tokens(self, lease: Lease, count: int) -> None:
        """Set how many tokens an attempt has generated; only the latest is stored."""
        with self._lock:
            said = self._of(lease)
            said.tokens = count
            if count:
                said.first_us = said.first_us or self._clock.wall()
        self._has_words.set()

    def continue_from(self, lease: Lease, output_lease: int) -> None:
        """Let an attempt's output continue that of an earlier lease."""
        with self._lock:
            self._continuing[lease.job_id, lease.lease] = output_lease

    def flush(self, lease: Lease) -> None:
        """Write an attempt's output, before its outcome is written."""
        key = (lease.job_id, lease.lease)
        if key in self._buffers:
            self._write(key)
        self._continuing.pop(key, None)

    def write(self) -> None:
        """Write the output of all attempts."""
        self._write(None)

    def _of(self, lease: Lease) -> _Buffer:
        return self._buffers.setdefault((lease.job_id, lease.lease), _Buffer())

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._has_words.wait()
            self._stopped.wait(GATHER_S)
            self._has_words.clear()
            with self.thread.pulse:
                self.write()

    def _write(self, only: Key | None) -> None:
        with self._writing:
            with self._lock:
                if only is None:
                    taken, self._buffers = self._buffers, {}
                else:
                    taken = {only: self._buffers.pop(only)} if only in self._buffers else {}
            try:
                self._report(taken)
            finally:
                with self._lock:
                    for key, said in taken.items():
                        if key in self._buffers:
                            said.put_before(self._buffers[key])
                        self._buffers[key] = said

    def _report(self, taken: dict[Key, _Buffer]) -> None:
        """Write the buffers, and remove from `taken` what is written or cannot be."""
        if not taken:
            return
        try:
            self._store.attempts.report([self._report_of(key, said) for key, said in taken.items()])
            taken.clear()
        except StoreError as error:
            logger.warning("output of %d job(s) will be written later: %s", len(taken), error)
        except Exception as error:
            if len(taken) == 1:
                ((key, _),) = taken.items()
                logger.error("output of job %d cannot be written and is dropped: %s", key[0], describe(error))
                taken.clear()
                return
            for key in list(taken):  # each on its own: one must not keep the others from being written
                alone = {key: taken[key]}
                self._report(alone)
                if not alone:
                    del taken[key]

    def _report_of(self, key: Key, said: _Buffer) -> Report:
        return Report(*key, "".join(said.texts), said.lines, said.progress, said.tokens, said.first_us, self._continuing.get(key))
