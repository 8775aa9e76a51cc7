"""Lists every change of a job's state: its sources, its target, when it happens, and the columns it sets.

The SQL statements and the documentation are generated from this table, and tests walk through it. A column that a transition
does not name keeps its value: `lease` and `worker_id` identify the job's latest attempt, and `device` and `reserved_bytes`
stay until that attempt's clean-up is verified, whatever state the job is in by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from gpuqueue.domain.job import FINISHED, WAITING, State


class Change(Enum):
    """A value that is not a constant, worded for the documentation."""

    NOW = "now"
    GIVEN = "given"
    GIVEN_OR_KEPT = "given or kept"
    ONE_MORE = "+ 1"
    ONE_LESS = "− 1"
    AS_ENQUEUED = "`enqueued_at`"
    CLEARED_UNLESS_RESERVED = "cleared, unless a device is reserved"
    UNSUSPECTED = "0 if it was a suspect"


Sets = Mapping[str, Change | int | None]


class Transition(NamedTuple):
    """One way into a state. A new job has no source. `sets` is in the order of the statement's parameters."""

    name: str
    sources: tuple[State, ...]
    target: State
    when: str
    sets: Sets

    def counted(self, source: State | None) -> dict[State, int]:
        """Return the change to the queue's counters of finished jobs: {state: change}."""
        entered = {self.target: 1} if self.target in FINISHED else {}
        return {**entered, source: -1} if source in FINISHED else entered


# Columns that only jobs in these states have: every transition out of them clears the column.
ONLY_IN: Mapping[str, tuple[State, ...]] = {
    "finished_at": FINISHED,
    "waiting_for": (State.RETRYABLE,),
    "cancel_requested": (State.RUNNING,),
}

# A reservation keeps its model, because its clean-up unloads it.
FORGET_DEMAND: Sets = {"demand_class": 0, "demand_bytes": 0, "demand_model": Change.CLEARED_UNLESS_RESERVED}

_RUNNING = (State.RUNNING,)
_START: Sets = {
    "lease": Change.ONE_MORE,
    "attempt": Change.ONE_MORE,
    "worker_id": Change.GIVEN,
    "started_at": Change.NOW,
    "progress": None,
    "progress_note": None,
    "output_tokens": 0,
}
_FAIL: Sets = {"finished_at": Change.NOW, "error": Change.GIVEN, "cancel_requested": 0}
_POSTPONE: Sets = {
    "scheduled_at": Change.GIVEN,
    "error": Change.GIVEN_OR_KEPT,
    "cancel_requested": 0,
    "demand_class": Change.UNSUSPECTED,
    "passed_at": None,
}
_UNSPENT: Sets = {"attempt": Change.ONE_LESS, "cancel_requested": 0}
_TAKE_BACK: Sets = {
    "lease": Change.ONE_MORE,
    "attempt": Change.ONE_LESS,
    "crashes": Change.GIVEN,
    "error": Change.GIVEN_OR_KEPT,
    "cancel_requested": 0,
}
_REJECT: Sets = {"finished_at": Change.NOW, "error": Change.GIVEN, "waiting_for": None}

ENQUEUE = Transition(
    "enqueue", (), State.AVAILABLE, "The job may start at once.", {"enqueued_at": Change.NOW, "scheduled_at": Change.GIVEN}
)
SCHEDULE = Transition(
    "schedule", (), State.SCHEDULED, "The job is scheduled for later.", {"enqueued_at": Change.NOW, "scheduled_at": Change.GIVEN}
)

# The due time stays the job's place in the queue: a job that was postponed for long does not go to the end. What determines its
# demand may have changed meanwhile.
PROMOTE = Transition(
    "promote",
    (State.SCHEDULED, State.RETRYABLE),
    State.AVAILABLE,
    "The job is due.",
    {"waiting_for": None, **FORGET_DEMAND},
)
WAKE = Transition(
    "wake",
    (State.RETRYABLE,),
    State.AVAILABLE,
    "The backend it waited for is available again.",
    {"scheduled_at": Change.AS_ENQUEUED, "waiting_for": None, **FORGET_DEMAND},
)

CLAIM = Transition("claim", (State.AVAILABLE,), State.RUNNING, "A worker claims it.", _START)
PLACE = Transition(
    "place",
    (State.AVAILABLE,),
    State.RUNNING,
    "A worker claims it and reserves memory on a device.",
    {
        **_START,
        "device": Change.GIVEN,
        "reserved_bytes": Change.GIVEN,
        "preemptible": Change.GIVEN,
        "continues": Change.GIVEN,
        "first_output_at": None,
    },
)

COMPLETE = Transition(
    "complete",
    _RUNNING,
    State.COMPLETED,
    "Its attempt succeeded.",
    {"finished_at": Change.NOW, "result": Change.GIVEN, "error": None, "cancel_requested": 0},
)
DISCARD = Transition(
    "discard", _RUNNING, State.DISCARDED, "Its attempt failed for good: no attempts are left, or a retry would not help.", _FAIL
)
STOP = Transition("stop", _RUNNING, State.CANCELLED, "A person cancelled it, and its attempt stopped.", _FAIL)
RETRY_LATER = Transition(
    "retry later",
    _RUNNING,
    State.RETRYABLE,
    "Its attempt failed, and attempts are left; the next one is due later.",
    {**_POSTPONE, "waiting_for": None},
)
RETRY_AT_ONCE = Transition(
    "retry at once", _RUNNING, State.AVAILABLE, "Its attempt failed, and attempts are left; the next one is due now.", _POSTPONE
)
SNOOZE = Transition(
    "snooze",
    _RUNNING,
    State.RETRYABLE,
    "It is postponed without spending the attempt: the task asked to snooze, or its backend is unavailable.",
    {**_POSTPONE, "attempt": Change.ONE_LESS, "waiting_for": Change.GIVEN},
)
SNOOZE_OVER = Transition(
    "snooze over",
    _RUNNING,
    State.AVAILABLE,
    "It is postponed without spending the attempt, but it is already due, or its backend is available again.",
    {**_POSTPONE, "attempt": Change.ONE_LESS},
)
RELEASE = Transition(
    "release", _RUNNING, State.AVAILABLE, "Its worker stops and releases it; it keeps its place in the queue.", _UNSPENT
)
PREEMPT = Transition(
    "preempt",
    _RUNNING,
    State.AVAILABLE,
    "It was preempted, for another job or a pause; it keeps its place in the queue.",
    {**_UNSPENT, "preemptions": Change.ONE_MORE},
)

CRASH = Transition(
    "crash",
    _RUNNING,
    State.AVAILABLE,
    "It was a suspect, and the process that ran only this job died.",
    {"attempt": Change.ONE_LESS, "crashes": Change.ONE_MORE, "error": Change.GIVEN, "cancel_requested": 0},
)
CRASH_DISCARDED = Transition(
    "crash discarded",
    _RUNNING,
    State.DISCARDED,
    "It was a suspect, and the process that ran only this job died for the `max_crashes`th time.",
    {
        "finished_at": Change.NOW,
        "attempt": Change.ONE_LESS,
        "crashes": Change.ONE_MORE,
        "error": Change.GIVEN,
        "cancel_requested": 0,
    },
)

RESCUE = Transition(
    "rescue",
    _RUNNING,
    State.AVAILABLE,
    "Its worker died. A job without a device that the worker was executing becomes a suspect.",
    {**_TAKE_BACK, "demand_class": Change.GIVEN_OR_KEPT},
)
RESCUE_CANCELLED = Transition(
    "rescue cancelled",
    _RUNNING,
    State.CANCELLED,
    "Its worker died, and a person had cancelled it.",
    {"finished_at": Change.NOW, **_TAKE_BACK},
)
RESCUE_DISCARDED = Transition(
    "rescue discarded",
    _RUNNING,
    State.DISCARDED,
    "It was a suspect, alone in its worker, which died; that was the `max_crashes`th such death.",
    {"finished_at": Change.NOW, **_TAKE_BACK},
)

# The error stays: it says why the latest attempt failed. The state says that the job was cancelled.
CANCEL = Transition(
    "cancel",
    WAITING,
    State.CANCELLED,
    "A person cancelled it while it waited.",
    {"finished_at": Change.NOW, "waiting_for": None},
)
EXPIRE = Transition("expire", WAITING, State.DISCARDED, "It could not start before `expires_at`.", _REJECT)
REFUSE = Transition("refuse", WAITING, State.DISCARDED, "No backend can run it now, and its queue rejects such jobs.", _REJECT)

# `preemptions` stays: a job that was preempted often stays protected.
MANUAL_RETRY = Transition(
    "manual retry",
    (State.DISCARDED, State.CANCELLED, State.RETRYABLE, State.SCHEDULED),
    State.AVAILABLE,
    "A person retried it.",
    {
        "scheduled_at": Change.NOW,
        "finished_at": None,
        "attempt": 0,
        "crashes": 0,
        "expires_at": None,
        "waiting_for": None,
        "error": None,
        "passed_at": None,
        **FORGET_DEMAND,
    },
)
REPAIR = Transition(
    "repair",
    _RUNNING,
    State.AVAILABLE,
    "It has no worker or no start time, and a person repairs it as `gpuqueue db check` advises.",
    {"lease": Change.ONE_MORE, "cancel_requested": 0},
)

TRANSITIONS = (
    ENQUEUE, SCHEDULE, PROMOTE, WAKE, CLAIM, PLACE, COMPLETE, DISCARD, STOP, RETRY_LATER, RETRY_AT_ONCE, SNOOZE, SNOOZE_OVER,
    RELEASE, PREEMPT, CRASH, CRASH_DISCARDED, RESCUE, RESCUE_CANCELLED, RESCUE_DISCARDED, CANCEL, EXPIRE, REFUSE, MANUAL_RETRY,
    REPAIR,
)  # fmt: skip
