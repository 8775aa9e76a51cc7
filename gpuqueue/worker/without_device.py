"""Publishes attempts without a device through the next exchange; they need no preparation or clean-up."""

from __future__ import annotations

import logging

from gpuqueue.domain.outcomes import Completed
from gpuqueue.worker.attempt import EndedAttempt, Kind
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.exchange import Exchange
from gpuqueue.worker.observations import Observations

logger = logging.getLogger("gpuqueue.worker")


def without_device(exchange: Exchange, backends: Backends, observations: Observations) -> Kind:
    """Return the kind of attempts without a device."""

    def publish(ended: EndedAttempt) -> bool:
        exchange.add(ended.outcome)
        try:
            if ended.error is not None:
                backends.heard(ended.error)
            elif isinstance(ended.outcome, Completed):
                observations.of_run(ended.outcome.lease, ended.run_s)
        except BaseException:  # what is learned never changes an outcome
            logger.exception("nothing was learned from job %d", ended.outcome.lease.job_id)
        return True

    return Kind(publish)
