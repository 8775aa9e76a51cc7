"""How an attempt ended: the judgement of what it returned or raised."""

from __future__ import annotations

from datetime import UTC, datetime

from gpuqueue.domain import Lease, QueueSettings, State
from gpuqueue.executors import AttemptInterrupted
from gpuqueue.plugin_manager import Plugins
from gpuqueue.policies import default_policies
from gpuqueue.store.outcomes import Ended, Postponed
from gpuqueue.verdicts import DEFAULT_RULES
from gpuqueue.worker.attempt import Attempt, Judge
from gpuqueue.worker.output import Output

NOON = datetime(2030, 1, 7, 12, tzinfo=UTC)


def judged(gq, *, timeout_s):
    """What becomes of an attempt that an executor stopped of its own accord, before the worker asked it to."""
    judge = Judge(
        Plugins(default_policies()),
        settings_of=QueueSettings,
        backend_of=lambda _queue: None,
        rules_of=lambda _task: DEFAULT_RULES,
        now=lambda: NOON,
        max_payload_bytes=1000,
    )
    attempt = Attempt(Lease(1, 1, "work", "task", 1, 1, {}, timeout_s, NOON), Output(gq.store))
    return judge.outcome(attempt, None, AttemptInterrupted())


def test_one_that_sees_its_deadline_before_the_worker_does_has_timed_out(gq):
    outcome = judged(gq, timeout_s=0.0)
    assert isinstance(outcome, Ended)
    assert (outcome.state, outcome.error.code) == (State.DISCARDED, "timed_out")


def test_one_that_stops_before_its_deadline_goes_back_unspent(gq):
    for timeout_s in (None, 60.0):
        outcome = judged(gq, timeout_s=timeout_s)
        assert isinstance(outcome, Postponed)
        assert (outcome.outcome, outcome.spent) == ("released", False)
