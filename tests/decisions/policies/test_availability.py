"""What becomes of queues and jobs while a backend is away."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuqueue.contract.hookspecs import AttemptFailedDetails, QueueHoldDetails
from gpuqueue.decisions.policies.availability import ANOTHER_S, REFUSAL, Availability
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.errors import BackendUnavailable, RunnerCrashed
from gpuqueue.domain.moments import clock
from gpuqueue.domain.verdicts import Discard, Snooze
from gpuqueue.testing.views import BATCH, MAIL, NOW, OLLAMA, REALTIME, backend, lease, view

AWAY = backend(available=False, error="nothing listens", retry_at=NOW + timedelta(seconds=5))


def hold(queue, ollama=AWAY):
    return Availability().queue_hold(QueueHoldDetails(queue, view(ollama=ollama), {}))


def test_queues_go_on_while_their_backend_is_there_or_they_need_none():
    assert hold(REALTIME, backend()) is None
    assert hold(MAIL) is None
    assert hold(replace(BATCH, backend="another")) is None


def test_a_rejecting_queue_is_held_and_its_jobs_are_refused():
    detail = f"{REFUSAL} (ollama: nothing listens; next check at {clock(AWAY.retry_at, now=NOW)})"
    assert hold(REALTIME) == Hold("unavailable", detail, refuse=True, advice="gpuqueue doctor")


@pytest.mark.parametrize("choice", ["retry", "wait"])
def test_other_queues_keep_their_jobs(choice):
    found = hold(replace(BATCH, when_unavailable=choice))
    assert (found.reason, found.refuse, found.until) == ("unavailable", False, None)
    assert found.detail == f"ollama: nothing listens; next check at {clock(AWAY.retry_at, now=NOW)}"


def failed(queue, error):
    return Availability().attempt_failed(AttemptFailedDetails(lease(), queue, error, NOW, OLLAMA))


def test_a_job_that_met_an_absent_backend_is_postponed_or_refused():
    error = BackendUnavailable("nothing listens", backend="ollama")
    assert failed(replace(BATCH, retry_every_s=60), error) == Snooze("1m", waiting_for="ollama")
    assert failed(REALTIME, error) == Discard(REFUSAL, code="unavailable")


def test_a_job_that_met_one_absent_backend_of_several_goes_to_another():
    details = AttemptFailedDetails(
        lease(), REALTIME, BackendUnavailable("gone", backend="desk"), NOW, OLLAMA, backends=(OLLAMA, OLLAMA)
    )
    assert Availability().attempt_failed(details) == Snooze(ANOTHER_S)


def test_other_failures_are_left_to_other_policies():
    assert failed(REALTIME, RunnerCrashed("gone")) is None
    assert failed(BATCH, RuntimeError("gone")) is None
