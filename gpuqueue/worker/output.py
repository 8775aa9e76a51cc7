"""Owns a worker's output on its way to the store: gathers text for some milliseconds, then writes it; drops nothing silently."""

from __future__ import annotations

import logging
import threading

from gpuqueue.domain import Lease
from gpuqueue.errors import StoreError
from gpuqueue.store import Store

GATHER_S = 0.06
logger = logging.getLogger("gpuqueue.worker")


class Output:
    """Buffers the text of running attempts; one thread writes all buffers in one transaction, GATHER_S after the first text."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._buffers: dict[tuple[int, int], list[str]] = {}
        self._lock = threading.Lock()
        self._has_text = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpuqueue-output", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._has_text.set()
        self._thread.join()

    def emit(self, lease: Lease, text: str) -> None:
        """Take a piece of an attempt's output."""
        with self._lock:
            self._buffers.setdefault((lease.job_id, lease.lease), []).append(text)
        self._has_text.set()

    def flush(self, lease: Lease) -> None:
        """Write what an attempt has emitted, before its outcome is written."""
        key = (lease.job_id, lease.lease)
        if key in self._buffers:
            self._write([key])

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._has_text.wait()
            self._stopped.wait(GATHER_S)
            self._has_text.clear()
            self._write(None)

    def _write(self, keys: list[tuple[int, int]] | None) -> None:
        # Held during the write, so that a piece cannot overtake an earlier one that another thread is writing.
        with self._lock:
            chosen = [key for key in (keys if keys is not None else list(self._buffers)) if self._buffers.get(key)]
            chunks = [(job_id, lease, "".join(self._buffers[job_id, lease])) for job_id, lease in chosen]
            if not chunks:
                return
            try:
                self._store.append_chunks(chunks)
            except StoreError as error:
                logger.warning("output of %d job(s) is kept back: %s", len(chunks), error)
                return
            for key in chosen:
                del self._buffers[key]
