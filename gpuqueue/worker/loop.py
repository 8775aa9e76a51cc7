"""Runs a worker's loop: stops attempts that must stop, claims jobs that can start, and sleeps until something may change."""

from __future__ import annotations

import logging

from gpuqueue.domain.errors import StoreError
from gpuqueue.store.wakeups import POLL_S
from gpuqueue.worker.boot import Parts
from gpuqueue.worker.drain import tend_while
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.threads import NUDGE_S

TRY_AGAIN_S = 1.0
SHORTEST_SLEEP_S = 0.01  # work that is due but cannot be done yet must not keep the worker busy
logger = logging.getLogger("gpuqueue.worker")


class Loop:
    """`burst` ends it when no more jobs can start now."""

    def __init__(self, parts: Parts, orders: Orders, *, burst: bool) -> None:
        self._parts = parts
        self._orders = orders
        self._burst = burst
        self._clock = parts.site.clock
        self._seen = parts.site.store.changed()

    def run(self) -> None:
        """Work until the worker should stop, has lost its lease, or has nothing left to do."""
        parts = self._parts
        while not self._must_end:
            if self._orders.all_begun:
                return self._wait_for_the_last()
            is_settled = parts.dispatcher.is_settled  # before the claim, which may still have come too early
            try:
                with parts.pulse:
                    claimed = self._tick()
                    sleep_s = self._sleep_s()
            except StoreError as error:
                logger.warning("%s; trying again", error)
                claimed, sleep_s = 0, TRY_AGAIN_S
            except Exception:  # a plugin's answer must not end the worker
                logger.exception("choosing jobs failed; trying again")
                claimed, sleep_s = 0, TRY_AGAIN_S
            if self._burst and not claimed and parts.is_idle and is_settled:
                return
            self._sleep(sleep_s)

    @property
    def _must_end(self) -> bool:
        return self._orders.stop.is_set() or self._parts.heartbeat.lost

    def _tick(self) -> int:
        """Stop attempts that must stop, and claim jobs that can start; returns how many jobs were claimed."""
        parts = self._parts
        parts.attempts.stop_requested()
        parts.make_up_for(parts.attempts.stop_overdue())
        parts.threads.give_back_stale()
        claimed = parts.exchange.exchange()  # first with the last decision, to answer a wakeup at once
        before = parts.dispatcher.plain
        # A wakeup that led to no claim may come from a new queue, or from one that is no longer held.
        parts.dispatcher.decide(force=not claimed and parts.threads.has_free_thread)
        if parts.dispatcher.plain != before or parts.dispatcher.suspects:
            claimed += parts.exchange.exchange()
        for lease in parts.dispatcher.claim_for_devices(is_alone=parts.exchange.is_alone):
            try:
                parts.device_jobs.submit(lease)
            except BaseException as error:  # it is claimed, and nobody else would run it
                parts.device_jobs.refuse(lease, error)
            claimed += 1
        if not claimed and parts.is_idle and (lone := parts.dispatcher.next_lone()) is not None:
            # All else comes first, also what has become available since this tick began.
            claimed += parts.exchange.exchange() or parts.exchange.exchange(alone=lone)
        return claimed

    def _wait_for_the_last(self) -> None:
        """Wait for the last of `max_jobs` to end, however long that takes."""
        tend_while(self._parts, lambda: not (self._must_end or self._parts.is_idle))

    def _sleep_s(self) -> float:
        """Return how long nothing can change without a wakeup."""
        sleep_s = 1.0 if not self._parts.is_idle else 5.0
        change = self._parts.dispatcher.next_change()
        if change is not None:
            sleep_s = min(sleep_s, (change - self._clock.now()).total_seconds())
        moment_s = self._parts.attempts.next_moment_s()
        if moment_s is not None:
            sleep_s = min(sleep_s, moment_s - self._clock.monotonic())
        return max(sleep_s, SHORTEST_SLEEP_S)

    def _sleep(self, sleep_s: float) -> None:
        """Sleep until a wakeup, a change of the file without one, or the end of `sleep_s`."""
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
