"""Whether and when a failed job is tried again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpuqueue.domain import Discard, Retry
from gpuqueue.errors import CallerFault, RunnerCrashed
from gpuqueue.hookspecs import AttemptFailedDetails
from gpuqueue.policies.retries import Retries

from .views import BATCH, NOW, lease


def failed(error, *, attempt=1, max_attempts=3, jitter=0.0):
    details = AttemptFailedDetails(lease(attempt=attempt, max_attempts=max_attempts), BATCH, error, NOW, None)
    return Retries(jitter=lambda: jitter).attempt_failed(details)


@pytest.mark.parametrize(("attempt", "wait_s"), [(1, 5), (2, 10), (3, 20), (11, 3600), (5000, 3600)])
def test_each_wait_is_twice_as_long_as_the_last_up_to_an_hour(attempt, wait_s):
    assert failed(RuntimeError(), attempt=attempt, max_attempts=10_000) == Retry(NOW + timedelta(seconds=wait_s))


def test_jobs_that_failed_together_do_not_return_together():
    assert failed(RuntimeError(), jitter=1.0) == Retry(NOW + timedelta(seconds=6.25))
    waits = {Retries().attempt_failed(AttemptFailedDetails(lease(), BATCH, RuntimeError(), NOW, None)).at for _ in range(5)}
    assert len(waits) > 1
    assert all(timedelta(seconds=5) <= at - NOW <= timedelta(seconds=6.25) for at in waits)


def test_the_last_attempt_is_final_and_keeps_what_went_wrong():
    assert failed(RuntimeError("no"), attempt=3) == Discard("failed", "RuntimeError: no")
    assert failed(RunnerCrashed("died"), attempt=3) == Discard("runner_crashed", "died")


def test_a_request_that_is_wrong_is_never_tried_again():
    assert failed(CallerFault("no such model")) == Discard("caller_fault", "no such model")
