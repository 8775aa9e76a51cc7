"""Decides whether and when a failed job is retried; unavailable backends are handled elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable

from gpuqueue.contract.hookspecs import AttemptFailedDetails, hookimpl
from gpuqueue.domain.errors import CallerFault, describe
from gpuqueue.domain.verdicts import DEFAULT_BACKOFF, Discard, Retry, failure


class Retries:
    """Retries by the task's rules while attempts are left; errors in the caller's request are final."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance

    @hookimpl
    def attempt_failed(self, details: AttemptFailedDetails) -> Retry | Discard | None:
        error, attempt = details.error, details.lease.attempt
        if isinstance(error, CallerFault) or details.rules.is_final(error) or attempt >= details.lease.max_attempts:
            code, message = failure(error)
            return Discard(message, code=code)
        try:
            return Retry(details.rules.backoff.wait_s(attempt, self._chance()))
        except Exception as failed:  # the function is the application's
            reason = f"its backoff failed: {describe(failed)}; the wait is the default one"
            return Retry(DEFAULT_BACKOFF.wait_s(attempt, self._chance()), reason=reason)
