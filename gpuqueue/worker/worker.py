"""Runs a worker from start to end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from gpuqueue.client.options import read_texts
from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.errors import ConfigurationError, GPUQueueError, WorkerFailed, describe
from gpuqueue.domain.numbers import whole_number
from gpuqueue.domain.safe_text import safe_trace
from gpuqueue.domain.settings import MOST_THREADS
from gpuqueue.executors import child
from gpuqueue.worker.boot import boot
from gpuqueue.worker.drain import drain
from gpuqueue.worker.loop import Loop
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.signals import stopped_by_signals

logger = logging.getLogger("gpuqueue.worker")


class Worker:
    """Runs a queue object's jobs, in this thread (`run`) or in the background (`start`, `stop`).

    `queues` limits it to some queues; `threads` is how many jobs without a device run at once, in addition to one per slot of
    each device. `burst` ends it when no more jobs can start now, `max_jobs` after that many jobs. `accept_config` makes its
    settings the shared ones even if another live worker has different settings.
    """

    def __init__(
        self,
        gq: GPUQueue,
        *,
        queues: Iterable[str] | None = None,
        threads: int | None = None,
        burst: bool = False,
        max_jobs: int | None = None,
        accept_config: bool = False,
    ) -> None:
        self.id = ""
        self._gq = gq
        self._queues = None if queues is None else read_texts("queues", queues)
        self._threads = gq.config.worker.threads
        if threads is not None:
            self._threads = whole_number(threads, what="threads", minimum=1, maximum=MOST_THREADS)
        if max_jobs is not None:
            whole_number(max_jobs, what="max_jobs", minimum=1)
        self._burst = burst
        self._accept_config = accept_config
        self._orders = Orders(max_jobs=max_jobs, grace_s=gq.config.worker.grace_s)
        self._booted = threading.Event()
        self._boot_error: BaseException | None = None
        self._background: threading.Thread | None = None

    # --- the public methods ---

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or `stop`; a second signal gives running jobs back at once, a third
        has its usual effect.

        Raises: ConfigurationError if a live worker has different settings; UnknownQueue; StoreError.
        """
        _refuse_in_child()
        with stopped_by_signals(self.request_stop):
            self._work()

    def start(self) -> Worker:
        """Work in a background thread; returns once the worker is registered. Raises: as `run`."""
        _refuse_in_child()
        if self._background is not None:
            raise ConfigurationError("this worker has already been started")
        self._background = threading.Thread(target=self._work_in_background, name="gpuqueue-worker", daemon=True)
        self._background.start()
        self._booted.wait()
        if self._boot_error is not None:
            raise self._boot_error
        return self

    def stop(self, *, grace_s: float | None = None) -> None:
        """Claim no more jobs, let running ones end within the grace period, give the others back unspent, and return."""
        if grace_s is not None:
            self._orders.grace_s = grace_s
        self.request_stop()
        if self._background is not None:
            self._background.join()

    def request_stop(self) -> None:
        """Request the stop without waiting; a second call gives running jobs back at once."""
        self._orders.request_stop()

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- the run ---

    @property
    def _is_stopping(self) -> bool:
        return self._orders.stop.is_set()

    def _work(self) -> None:
        while True:
            parts = boot(self._gq, self._orders, queues=self._queues, threads=self._threads, accept_config=self._accept_config)
            self.id = parts.site.worker_id
            parts.site.log.started(self._queues, parts.site.store.name)
            try:
                try:
                    parts.start()
                    self._booted.set()
                    Loop(parts, self._orders, burst=self._burst).run()
                finally:
                    try:
                        drain(parts, self._orders)
                    except BaseException:  # else its heartbeat would go on, and nobody would rescue its jobs
                        drain(parts, self._orders)
                        raise
            except (GPUQueueError, KeyboardInterrupt):
                raise
            except BaseException as error:
                logger.error("worker %s failed\n%s", self.id, safe_trace(error))
                raise WorkerFailed(f"worker {self.id} failed: {describe(error)}; start it again") from error
            if self._orders.failure is not None:
                raise self._orders.failure
            if not parts.heartbeat.lost or self._is_stopping or self._orders.all_begun:
                return
            logger.warning("worker %s starts again under a new id", self.id)

    def _work_in_background(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._boot_error = error
            if self._booted.is_set():
                logger.exception("worker %s failed", self.id)
        finally:
            self._booted.set()


def _refuse_in_child() -> None:
    """Refuse to start a worker in a process of an isolated task, which imports the task's module and would start another."""
    if child.is_child:
        raise ConfigurationError(
            "cannot start a worker in the process of an isolated task, which imports the task's module. "
            'Start the worker under `if __name__ == "__main__":`, or in a module without isolated tasks'
        )
