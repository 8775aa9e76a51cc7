"""Stops a worker: lets attempts end within the grace period, gives the others back, and leaves nothing held."""

from __future__ import annotations

import logging

from gpuqueue.domain.errors import StoreError
from gpuqueue.worker.attempts import ABANDON_S
from gpuqueue.worker.boot import Parts
from gpuqueue.worker.orders import Orders

logger = logging.getLogger("gpuqueue.worker")


def drain(parts: Parts, orders: Orders) -> None:
    """Claim nothing more, end the running attempts, and close all parts."""
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
    # A clean-up in progress may finish, unless a second stop request comes.
    give_up_s = monotonic() + orders.grace_s
    while not parts.device_jobs.is_idle and not orders.at_once.is_set() and monotonic() < give_up_s:
        parts.listener.wait(0.05)
    _close(parts)


def tend(parts: Parts) -> None:
    """Write the outcomes, and stop the attempts that must stop."""
    parts.threads.give_back()  # jobs claimed by an exchange that started before the worker was stopped
    try:
        parts.exchange.exchange()
        parts.attempts.stop_requested()
        parts.make_up_for(parts.attempts.stop_overdue())
    except StoreError as error:
        logger.warning("%s; trying again", error)


def _close(parts: Parts) -> None:
    """Stop every part, unregister the worker, and close its files; pending outcomes are written first."""
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
        logger.warning("worker %s could not unregister: %s; another worker will rescue it", site.worker_id, error)
    try:
        parts.maintenance.stop()
    except StoreError as error:
        logger.warning("worker %s could not deliver its last events: %s", site.worker_id, error)
    parts.listener.close()
    parts.liveness.close()
    site.store.close()
    site.log.stopped()
