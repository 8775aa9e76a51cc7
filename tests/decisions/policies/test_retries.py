"""Whether and when a failed job is tried again."""

from __future__ import annotations

import pytest

from gpuqueue import backoff
from gpuqueue.contract.hookspecs import AttemptFailedDetails
from gpuqueue.decisions.policies.retries import Retries
from gpuqueue.domain.errors import CallerFault, RunnerCrashed
from gpuqueue.domain.verdicts import Discard, Retry, RetryRules
from gpuqueue.testing.views import BATCH, NOW, lease


def failed(error, *, attempt=1, max_attempts=3, chance=0.0, **rules):
    details = AttemptFailedDetails(
        lease(attempt=attempt, max_attempts=max_attempts), BATCH, error, NOW, None, RetryRules(**rules)
    )
    return Retries(chance=lambda: chance).attempt_failed(details)


@pytest.mark.parametrize(("attempt", "wait_s"), [(1, 5), (2, 10), (3, 20), (11, 3600), (5000, 3600)])
def test_each_wait_is_twice_as_long_as_the_last_up_to_an_hour(attempt, wait_s):
    assert failed(RuntimeError(), attempt=attempt, max_attempts=10_000) == Retry(wait_s)


def test_jobs_that_failed_together_do_not_return_together():
    assert failed(RuntimeError(), chance=1.0) == Retry(4.0)
    details = AttemptFailedDetails(lease(), BATCH, RuntimeError(), NOW, None)
    waits = {Retries().attempt_failed(details).after_s for _ in range(5)}
    assert len(waits) > 1
    assert all(4 <= wait_s <= 5 for wait_s in waits)


def test_the_last_attempt_is_final_and_keeps_what_went_wrong():
    assert failed(RuntimeError("no"), attempt=3) == Discard("RuntimeError: no", code="failed")
    assert failed(RunnerCrashed("died"), attempt=3) == Discard("died", code="runner_crashed")
    assert failed(Retry("5m", reason="not yet"), attempt=3) == Discard("not yet", code="failed")


def test_a_request_that_is_wrong_is_never_tried_again():
    assert failed(CallerFault("no such model")) == Discard("no such model", code="caller_fault")


def test_a_task_says_which_errors_are_final_and_which_alone_are_worth_another_attempt():
    assert failed(KeyError("x"), discard_on=(LookupError,)) == Discard("KeyError: 'x'", code="failed")
    assert failed(ValueError(), discard_on=(LookupError,)) == Retry(5)
    assert failed(ConnectionResetError(), retry_on=(OSError,)) == Retry(5)
    assert failed(ValueError("x"), retry_on=(OSError,)) == Discard("ValueError: x", code="failed")
    assert failed(FileNotFoundError("x"), retry_on=(OSError,), discard_on=(FileNotFoundError,)) == Discard(
        "FileNotFoundError: x", code="failed"
    )


def test_a_task_that_asks_for_another_attempt_gets_it_whatever_errors_it_retries():
    assert failed(Retry(), retry_on=(OSError,)) == Retry(5)


def test_the_tasks_backoff_says_how_long_to_wait():
    assert failed(RuntimeError(), attempt=2, backoff=backoff.polynomial("3s", power=3)) == Retry(24)
