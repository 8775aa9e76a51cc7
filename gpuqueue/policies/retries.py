"""Owns whether and when a failed job is tried again; knows nothing of backends that are away."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

from gpuqueue.domain import Discard, Retry
from gpuqueue.errors import CallerFault, ExecutionError
from gpuqueue.hookspecs import AttemptFailedDetails, hookimpl

FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 3600.0
JITTER = 0.25  # of the wait, so that jobs that failed together do not return together


class Retries:
    """Retries with exponential backoff while attempts are left; the caller's own faults are final."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter

    @hookimpl
    def attempt_failed(self, details: AttemptFailedDetails) -> Retry | Discard | None:
        error = details.error
        code = error.code if isinstance(error, ExecutionError) else "failed"
        message = str(error) if isinstance(error, ExecutionError) else f"{type(error).__name__}: {error}"
        if isinstance(error, CallerFault) or details.lease.attempt >= details.lease.max_attempts:
            return Discard(code, message)
        wait_s = min(FIRST_WAIT_S * 2 ** min(details.lease.attempt - 1, 30), LONGEST_WAIT_S)
        return Retry(details.now + timedelta(seconds=wait_s * (1 + JITTER * self._jitter())))
