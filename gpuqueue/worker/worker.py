"""Owns a worker process: its loop, its signals, its end; what it runs and why is decided elsewhere."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.errors import ConfigurationError, StoreError
from gpuqueue.executors import child
from gpuqueue.store.wakeups import POLL_S
from gpuqueue.worker.attempts import ABANDON_S
from gpuqueue.worker.boot import Parts, boot
from gpuqueue.worker.threads import NUDGE_S

TRY_AGAIN_S = 1.0
SHORTEST_SLEEP_S = 0.01  # what is due and cannot be done yet must not keep the worker busy
logger = logging.getLogger("gpuqueue.worker")


def _refuse_in_child() -> None:
    """A module that starts a worker as it is imported would do so again in each process that runs its isolated tasks."""
    if child.is_child:
        raise ConfigurationError(
            "a worker is started in a process that runs an isolated task, which imports the task's module: "
            'start it under `if __name__ == "__main__":`, or in another module than the task\'s'
        )


class Worker:
    """Runs a queue object's jobs, in this thread (`run`) or in the background (`start`, `stop`).

    `queues` limits it to some queues; `threads` is how many jobs without a device run at once, beside one for each slot
    of each device. `burst` ends it when nothing more can start now, `max_jobs` when so many have run. `accept_config` makes its
    settings the shared ones even when another live worker has others.
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
        self._queues = None if queues is None else tuple(queues)
        self._threads = threads or gq.config.worker.threads
        self._burst = burst
        self._left = max_jobs  # how many may still begin
        self._counting = threading.Lock()
        self._accept_config = accept_config
        self._stop_requested = threading.Event()
        self._stop_now = threading.Event()
        self._booted = threading.Event()
        self._boot_error: BaseException | None = None
        self._gone = ""  # the file that is not there any more, and how
        self._background: threading.Thread | None = None

    # --- the public face ---

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or `stop`; a second signal gives running jobs back at once.

        Raises: ConfigurationError when a live worker has other settings; UnknownQueue; StoreError.
        """
        _refuse_in_child()
        restore = self._handle_signals()
        try:
            self._work()
        finally:
            restore()

    def start(self) -> Worker:
        """Work in a background thread; returns once the worker is registered. Raises: as `run`."""
        _refuse_in_child()
        if self._background is not None:
            raise ConfigurationError("this worker has been started already")
        self._background = threading.Thread(target=self._work_in_background, name="gpuqueue-worker", daemon=True)
        self._background.start()
        self._booted.wait()
        if self._boot_error is not None:
            raise self._boot_error
        return self

    def stop(self, *, grace_s: float | None = None) -> None:
        """Claim nothing more, let running jobs end within the grace, give back the rest unspent, and return."""
        if grace_s is not None:
            self._grace_s = grace_s
        self.request_stop()
        if self._background is not None:
            self._background.join()

    def request_stop(self) -> None:
        """Begin to stop, without waiting; a second call gives running jobs back at once."""
        if self._stop_requested.is_set():
            self._stop_now.set()
        self._stop_requested.set()
        parts = getattr(self, "_parts", None)
        if parts is not None:
            parts.listener.ring()

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- the story ---

    def _work(self) -> None:
        self._grace_s = getattr(self, "_grace_s", self._gq.config.worker.grace_s)
        while True:
            parts = self._parts = boot(
                self._gq,
                queues=self._queues,
                threads=self._threads,
                accept_config=self._accept_config,
                may_begin=self._may_begin,
                on_lease_lost=self._lease_lost,
                on_file_gone=self._file_gone,
            )
            self.id = parts.id
            parts.log.started(self._queues, str(parts.store.name))
            parts.start()
            self._booted.set()
            try:
                self._loop(parts)
            finally:
                self._drain(parts)
            if self._gone:
                raise StoreError(f"{self._gone}; start it again")
            if not parts.heartbeat.lost or self._stop_requested.is_set() or self._left == 0:
                return
            logger.warning("worker %s begins anew under another id", parts.id)

    def _work_in_background(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._boot_error = error
            if self._booted.is_set():
                logger.exception("worker %s ended", self.id)
        finally:
            self._booted.set()

    def _loop(self, parts: Parts) -> None:
        data_version = parts.store.changed()
        while not (self._stop_requested.is_set() or parts.heartbeat.lost):
            if self._left == 0:
                return self._wait_for_the_last(parts)
            try:
                claimed = self._tick(parts)
                sleep_s = self._sleep_s(parts)
            except StoreError as error:
                logger.warning("%s; trying again", error)
                claimed, sleep_s = 0, TRY_AGAIN_S
            except Exception:  # what a plugin answered must not end the worker
                logger.exception("choosing jobs failed and is tried again")
                claimed, sleep_s = 0, TRY_AGAIN_S
            if self._burst and not claimed and parts.is_idle:
                return
            wake_at_s = time.monotonic() + sleep_s
            while not (self._stop_requested.is_set() or parts.heartbeat.lost):
                left_s = min(wake_at_s - time.monotonic(), NUDGE_S if parts.threads.is_waiting else POLL_S)
                if left_s <= 0 or parts.listener.wait(left_s):
                    break
                parts.threads.nudge()
                found = parts.store.changed()
                if found != data_version:
                    data_version = found
                    break

    def _may_begin(self) -> bool:
        with self._counting:
            if self._left is None:
                return True
            if self._left == 0:
                return False
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._parts.exchange.stop()
            self._parts.listener.ring()
        return True

    def _wait_for_the_last(self, parts: Parts) -> None:
        """Let the last of `max_jobs` end, however long that takes."""
        while not (self._stop_requested.is_set() or parts.heartbeat.lost or parts.is_idle):
            self._tend(parts)
            parts.listener.wait(0.05)

    def _tick(self, parts: Parts) -> int:
        """Look at everything once: stop what must stop, and claim what may start; returns how many jobs were claimed."""
        parts.attempts.stop_requested()
        parts.make_up_for(parts.attempts.stop_overdue())
        parts.threads.give_back_stale()
        claimed = parts.exchange.exchange()  # first with the last decision, so that a ring is answered at once
        before = parts.dispatcher.plain
        # A ring that the last decision has no answer to may be a new queue's, or one that is held no more.
        parts.dispatcher.decide(force=not claimed and parts.threads.has_free_thread)
        if parts.dispatcher.plain != before:
            claimed += parts.exchange.exchange()
        for lease in parts.dispatcher.claim_for_devices():
            parts.device_jobs.submit(lease)
            claimed += 1
        return claimed

    def _sleep_s(self, parts: Parts) -> float:
        """How long nothing can change but by a ring."""
        sleep_s = 1.0 if not parts.is_idle else 5.0
        change = parts.dispatcher.next_change()
        if change is not None:
            sleep_s = min(sleep_s, (change - self._gq.now()).total_seconds())
        moment_s = parts.attempts.next_moment_s()
        if moment_s is not None:
            sleep_s = min(sleep_s, moment_s - time.monotonic())
        return max(sleep_s, SHORTEST_SLEEP_S)

    # --- the end ---

    def _lease_lost(self) -> None:
        self._parts.attempts.stop_all("lease_lost")
        self._parts.listener.ring()

    def _file_gone(self, what: str) -> None:
        self._gone = what
        logger.error("%s; it stops", what)
        self._stop_now.set()  # nothing that still runs can be written
        self._stop_requested.set()
        self._parts.listener.ring()

    def _drain(self, parts: Parts) -> None:
        """Let attempts end within the grace, give back the rest, and leave nothing held."""
        parts.exchange.stop()
        parts.threads.stop()
        parts.threads.give_back()
        give_up_s = time.monotonic() + (0.0 if parts.heartbeat.lost else self._grace_s)
        while not parts.is_idle and not self._stop_now.is_set() and time.monotonic() < give_up_s:
            self._tend(parts)
            parts.listener.wait(0.05)
        parts.attempts.stop_all("stopping")
        give_up_s = time.monotonic() + ABANDON_S
        while parts.attempts.any_running and time.monotonic() < give_up_s:
            self._tend(parts)
            parts.listener.wait(0.02)
        parts.attempts.give_up_all()
        self._tend(parts)
        # A clean-up in progress may take its time, unless somebody insists.
        give_up_s = time.monotonic() + self._grace_s
        while not parts.device_jobs.is_idle and not self._stop_now.is_set() and time.monotonic() < give_up_s:
            parts.listener.wait(0.05)
        parts.device_jobs.stop(wait_s=ABANDON_S)
        parts.event_loop.close(wait_s=ABANDON_S)
        parts.children.close()
        parts.coroutines.stop()
        self._tend(parts)
        parts.services.stop()
        parts.heartbeat.stop()
        parts.output.stop()
        try:
            parts.store.workers.unregister(parts.id, now_us=self._gq.now_us())
        except StoreError as error:
            logger.warning("worker %s could not sign off: %s; it is rescued instead", parts.id, error)
        try:
            parts.maintenance.stop()
        except StoreError as error:
            logger.warning("worker %s could not tell the last events: %s", parts.id, error)
        parts.listener.close()
        parts.life.close()
        parts.store.close()
        parts.log.stopped()

    def _tend(self, parts: Parts) -> None:
        """Write what ended, and stop what must stop."""
        parts.threads.give_back()  # what an exchange that had begun before the worker was stopped still claimed
        try:
            parts.exchange.exchange()
            parts.attempts.stop_requested()
            parts.make_up_for(parts.attempts.stop_overdue())
        except StoreError as error:
            logger.warning("%s; trying again", error)

    def _handle_signals(self) -> Callable[[], None]:
        if threading.current_thread() is not threading.main_thread():
            return lambda: None

        def on_signal(number: int, _frame: FrameType | None) -> None:
            self.request_stop()

        before: dict[int, Any] = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore
