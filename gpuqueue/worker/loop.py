"""Turns a worker's loop: stops what must stop, claims what may start, and sleeps until something may have changed."""

from __future__ import annotations

import logging

from gpuqueue.domain.errors import StoreError
from gpuqueue.store.wakeups import POLL_S
from gpuqueue.worker.boot import Parts
from gpuqueue.worker.drain import tend
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.threads import NUDGE_S

TRY_AGAIN_S = 1.0
SHORTEST_SLEEP_S = 0.01  # what is due and cannot be done yet must not keep the worker busy
logger = logging.getLogger("gpuqueue.worker")


class Loop:
    """`burst` ends it when nothing more can start now."""

    def __init__(self, parts: Parts, orders: Orders, *, burst: bool) -> None:
        self._parts = parts
        self._orders = orders
        self._burst = burst
        self._clock = parts.site.clock
        self._seen = parts.site.store.changed()

    def run(self) -> None:
        """Work until the worker is to stop, has lost its lease, or has nothing left to do."""
        parts = self._parts
        while not self._must_end:
            if self._orders.all_begun:
                return self._wait_for_the_last()
            try:
                claimed = self._tick()
                sleep_s = self._sleep_s()
            except StoreError as error:
                logger.warning("%s; trying again", error)
                claimed, sleep_s = 0, TRY_AGAIN_S
            except Exception:  # what a plugin answered must not end the worker
                logger.exception("choosing jobs failed and is tried again")
                claimed, sleep_s = 0, TRY_AGAIN_S
            if self._burst and not claimed and parts.is_idle:
                return
            self._sleep(sleep_s)

    @property
    def _must_end(self) -> bool:
        return self._orders.stop.is_set() or self._parts.heartbeat.lost

    def _tick(self) -> int:
        """Look at everything once: stop what must stop, and claim what may start; returns how many jobs were claimed."""
        parts = self._parts
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

    def _wait_for_the_last(self) -> None:
        """Let the last of `max_jobs` end, however long that takes."""
        while not (self._must_end or self._parts.is_idle):
            tend(self._parts)
            self._parts.listener.wait(0.05)

    def _sleep_s(self) -> float:
        """How long nothing can change but by a ring."""
        sleep_s = 1.0 if not self._parts.is_idle else 5.0
        change = self._parts.dispatcher.next_change()
        if change is not None:
            sleep_s = min(sleep_s, (change - self._clock.now()).total_seconds())
        moment_s = self._parts.attempts.next_moment_s()
        if moment_s is not None:
            sleep_s = min(sleep_s, moment_s - self._clock.monotonic())
        return max(sleep_s, SHORTEST_SLEEP_S)

    def _sleep(self, sleep_s: float) -> None:
        """Sleep until a ring, a change of the file that nobody rang for, or the end of `sleep_s`."""
        parts = self._parts
        wake_at_s = self._clock.monotonic() + sleep_s
        while not self._must_end:
            left_s = min(wake_at_s - self._clock.monotonic(), NUDGE_S if parts.threads.is_waiting else POLL_S)
            if left_s <= 0 or parts.listener.wait(left_s):
                return
            parts.threads.nudge()
            found = parts.site.store.changed()
            if found != self._seen:
                self._seen = found
                return
