"""Stops a worker: lets attempts end within the grace period, gives the others back, and leaves nothing held."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gpuqueue.domain.errors import StoreError, describe
from gpuqueue.domain.safe_text import safe_trace
from gpuqueue.worker.attempts import ABANDON_S
from gpuqueue.worker.boot import Parts
from gpuqueue.worker.orders import Orders

EVERY_S = 0.05
logger = logging.getLogger("gpuqueue.worker")


def drain(parts: Parts, orders: Orders) -> None:
    """Claim nothing more, end the running attempts, and close all parts."""
    try:
        _end_attempts(parts, orders)
    except BaseException as error:  # what still runs is given back by the worker that rescues this one
        logger.error("worker %s could not end its attempts: %s\n%s", parts.site.worker_id, describe(error), safe_trace(error))
    finally:
        _close(parts)


def _end_attempts(parts: Parts, orders: Orders) -> None:
    monotonic = parts.site.clock.monotonic
    parts.exchange.stop()
    parts.threads.stop()
    parts.threads.give_back()
    give_up_s = monotonic() + (0.0 if parts.heartbeat.lost else orders.grace_s)
    tend_while(parts, lambda: not parts.is_idle and not orders.at_once.is_set() and monotonic() < give_up_s)
    parts.attempts.stop_all("stopping")
    give_up_s = monotonic() + ABANDON_S
    tend_while(parts, lambda: parts.attempts.any_running and monotonic() < give_up_s)
    parts.attempts.give_up_all()
    _tend(parts)
    # A clean-up in progress may finish, unless a second stop request comes.
    give_up_s = monotonic() + orders.grace_s
    while not parts.device_jobs.is_idle and not orders.at_once.is_set() and monotonic() < give_up_s:
        parts.listener.wait(0.05)


def tend_while(parts: Parts, condition: Callable[[], bool]) -> None:
    """Write the outcomes, and stop the attempts that must stop, for as long as the condition holds."""
    told = ""
    while condition():
        told = _tend(parts, told)
        parts.listener.wait(EVERY_S)


def _tend(parts: Parts, told: str = "") -> str:
    """Write outcomes and stop attempts once; returns why it failed, and logs that unless it was `told` before."""
    parts.threads.give_back()  # jobs claimed by an exchange that started before the worker was stopped
    try:
        parts.exchange.exchange()
        parts.attempts.stop_requested()
        parts.make_up_for(parts.attempts.stop_overdue())
    except StoreError as error:
        why = str(error)
        if why != told:
            logger.warning("%s; trying again", why)
    except Exception as error:
        why = describe(error)
        if why != told:
            logger.exception("stopping attempts failed; trying again")
    else:
        why = ""
    return why


def _close(parts: Parts) -> None:
    """Stop every part, unregister the worker, and close its files; pending outcomes are written first."""
    site = parts.site
    steps: tuple[Callable[[], object], ...] = (
        parts.exchange.stop,
        parts.threads.stop,
        lambda: parts.device_jobs.stop(wait_s=ABANDON_S),
        lambda: parts.event_loop.close(wait_s=ABANDON_S),
        parts.children.close,
        parts.coroutines.stop,
        lambda: _tend(parts),
        parts.prefetch.stop,
        parts.services.stop,
        parts.heartbeat.stop,
        parts.output.stop,
        lambda: site.store.workers.unregister(site.worker_id, now_us=site.clock.wall()),
        parts.maintenance.stop,
        parts.listener.close,
        parts.liveness.close,
        parts.waits.close,
        site.store.close,
        site.log.stopped,
    )
    for step in steps:
        for _ in range(2):  # a part that is not closed would outlive the worker in its application's process
            try:
                step()
                break
            except StoreError as error:  # another worker rescues what this one could not write
                logger.warning("worker %s did not stop cleanly: %s", site.worker_id, error)
            except BaseException as error:  # the other parts must be closed all the same
                logger.error("worker %s did not stop cleanly: %s\n%s", site.worker_id, describe(error), safe_trace(error))
