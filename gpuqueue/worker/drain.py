"""Ends a worker: lets attempts end within the grace, gives back the rest, and leaves nothing held."""

from __future__ import annotations

import logging

from gpuqueue.domain.errors import StoreError
from gpuqueue.worker.attempts import ABANDON_S
from gpuqueue.worker.boot import Parts
from gpuqueue.worker.orders import Orders

logger = logging.getLogger("gpuqueue.worker")


def drain(parts: Parts, orders: Orders) -> None:
    """Claim nothing more, bring what runs to an end, and close all parts."""
    monotonic = parts.site.clock.monotonic
    parts.exchange.stop()
    parts.threads.stop()
    parts.threads.give_back()
    give_up_s = monotonic() + (0.0 if parts.heartbeat.lost else orders.grace_s)
    while not parts.is_idle and not orders.at_once.is_set() and monotonic() < give_up_s:
        tend(parts)
        parts.listener.wait(0.05)
    parts.attempts.stop_all("stopping")
    give_up_s = monotonic() + ABANDON_S
    while parts.attempts.any_running and monotonic() < give_up_s:
        tend(parts)
        parts.listener.wait(0.02)
    parts.attempts.give_up_all()
    tend(parts)
    # A clean-up in progress may take its time, unless somebody insists.
    give_up_s = monotonic() + orders.grace_s
    while not parts.device_jobs.is_idle and not orders.at_once.is_set() and monotonic() < give_up_s:
        parts.listener.wait(0.05)
    _close(parts)


def tend(parts: Parts) -> None:
    """Write what ended, and stop what must stop."""
    parts.threads.give_back()  # what an exchange that had begun before the worker was stopped still claimed
    try:
        parts.exchange.exchange()
        parts.attempts.stop_requested()
        parts.make_up_for(parts.attempts.stop_overdue())
    except StoreError as error:
        logger.warning("%s; trying again", error)


def _close(parts: Parts) -> None:
    """End every part, sign the worker off, and close what is open; what runs writes first."""
    site = parts.site
    parts.device_jobs.stop(wait_s=ABANDON_S)
    parts.event_loop.close(wait_s=ABANDON_S)
    parts.children.close()
    parts.coroutines.stop()
    tend(parts)
    parts.services.stop()
    parts.heartbeat.stop()
    parts.output.stop()
    try:
        site.store.workers.unregister(site.worker_id, now_us=site.clock.wall())
    except StoreError as error:
        logger.warning("worker %s could not sign off: %s; it is rescued instead", site.worker_id, error)
    try:
        parts.maintenance.stop()
    except StoreError as error:
        logger.warning("worker %s could not tell the last events: %s", site.worker_id, error)
    parts.listener.close()
    parts.liveness.close()
    site.store.close()
    site.log.stopped()
