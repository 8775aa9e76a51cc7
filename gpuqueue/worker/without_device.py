"""Publishes attempts without a device through the next exchange; they need no preparation or clean-up."""

from __future__ import annotations

from gpuqueue.domain.outcomes import Completed
from gpuqueue.worker.attempt import EndedAttempt, Kind
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.exchange import Exchange
from gpuqueue.worker.observations import Observations, learn_of


def without_device(exchange: Exchange, backends: Backends, observations: Observations) -> Kind:
    """Return the kind of attempts without a device."""

    def publish(ended: EndedAttempt) -> bool:
        exchange.add(ended.outcome)
        if ended.error is not None:
            learn_of(ended.outcome.lease, backends.heard, ended.error)
        elif isinstance(ended.outcome, Completed):
            learn_of(ended.outcome.lease, observations.of_run, ended.outcome.lease, ended.run_s)
        return True

    return Kind(publish)
