"""Owns the ways in which an attempt ends: what its task returns or raises, and what is documented to become of its job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from gpuqueue import Discard, Retry, Snooze
from gpuqueue.contract.executor import AttemptInterrupted
from gpuqueue.domain.errors import BackendUnavailable, CallerFault, ProcessDied
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import from_us
from gpuqueue.worker.running import Interruption
from tests.properties.model_jobs import SECOND, Ended, Job

BACKOFF_S = {"work": 30, "awork": 30, "picky": 20, "compute": 10, "firm": 10}  # fixed, without jitter
REQUEST_BACKOFF_S = 5  # of requests to a model: it doubles, and chance takes a fifth of it at most
LARGE = "x" * 1500


@dataclass(frozen=True)
class Ending:
    """What the task does; `expected(job, queue, now)` is what becomes of its job."""

    expected: Callable[[Job, QueueSettings, int], Ended]
    value: Any = None
    error: Callable[[int], BaseException] | None = None
    interruption: Interruption | None = None


def completed(value: Any) -> Ended:
    return {"kind": "completed", "result": value}


def ended(code: str, state: str = "discarded") -> Ended:
    return {"kind": "ended", "state": state, "code": code}


def postponed(
    outcome: str, due: int, *, spent: bool = False, code: str | None = None, waiting_for: str | None = None, chance: int = 0
) -> Ended:
    """`chance` is how much earlier than `due` the job may be due."""
    return {
        "kind": "postponed", "outcome": outcome, "due": due, "spent": spent, "code": code, "waiting_for": waiting_for,
        "chance": chance,
    }  # fmt: skip


def returned(value: Any) -> Ending:
    return Ending(lambda job, queue, now: completed(value), value=value)


def raised(error: Callable[[], BaseException], *, code: str = "failed", kinds: tuple[str, ...] = ()) -> Ending:
    """An error that the task's own rules are asked about; `kinds` says which of their classes it belongs to."""
    return Ending(lambda job, queue, now: _failed(job, now, code, kinds), error=lambda now: error())


def _failed(job: Job, now: int, code: str, kinds: tuple[str, ...], *, asked_for: bool = False) -> Ended:
    is_final = job["task"] == "picky" and not asked_for and "OSError" not in kinds
    if is_final or job["attempt"] >= job["max_attempts"]:
        return ended(code)
    if job["task"] in BACKOFF_S:
        return postponed("retried", now + BACKOFF_S[job["task"]] * SECOND, spent=True, code=code)
    wait = REQUEST_BACKOFF_S * 2 ** (job["attempt"] - 1) * SECOND
    return postponed("retried", now + wait, spent=True, code=code, chance=wait // 5)


def _retry(after_s: float | None = None, at_s: float | None = None) -> Ending:
    def error(now: int) -> Retry:
        return Retry(after_s) if after_s is not None else Retry(at=None if at_s is None else _moment(now, at_s))

    def expected(job: Job, queue: QueueSettings, now: int) -> Ended:
        wait_s = at_s if after_s is None else after_s
        if wait_s is None or job["attempt"] >= job["max_attempts"]:
            return _failed(job, now, "failed", (), asked_for=True)
        return postponed("retried", now + int(wait_s * SECOND), spent=True, code="failed")

    return Ending(expected, error=error)


def _away(job: Job, queue: QueueSettings, now: int) -> Ended:
    if queue.when_unavailable == "reject":
        return ended("unavailable")
    due = now + int(queue.retry_every_s * SECOND)
    return postponed("snoozed", due, code="unavailable", waiting_for="ollama")


def _died(job: Job, queue: QueueSettings, now: int) -> Ended:
    return {"kind": "crashed"} if job.get("suspect") else _failed(job, now, "process_died", ())


def _moment(now: int, seconds: float) -> Any:
    return from_us(now) + timedelta(seconds=seconds)


def _timed_out(job: Job, queue: QueueSettings, now: int) -> Ended:
    if job["cancel"]:
        return ended("cancelled", "cancelled")
    return _failed(job, now, "timed_out", ())


ENDINGS: dict[str, Ending] = {
    "returns": returned(7),
    "returns much": returned([LARGE]),
    "returns what is no JSON": Ending(lambda job, queue, now: ended("result"), value={1, 2}),
    "fails": raised(lambda: ValueError("wrong")),
    "fails as its rules retry": raised(lambda: ConnectionError("reset"), kinds=("OSError",)),
    "fails as its rules discard": Ending(
        lambda job, queue, now: _failed(job, now, "failed", ()), error=lambda now: KeyError("missing")
    ),
    "retries": _retry(),
    "retries soon": _retry(after_s=15),
    "retries at once": _retry(after_s=0),
    "retries at a time": _retry(at_s=45),
    "retries at a time past": _retry(at_s=-20),
    "snoozes": Ending(
        lambda job, queue, now: postponed("snoozed", now + 40 * SECOND, code="snoozed"), error=lambda now: Snooze("40s")
    ),
    "snoozes until": Ending(
        lambda job, queue, now: postponed("snoozed", now + 70 * SECOND, code="snoozed"),
        error=lambda now: Snooze(until=_moment(now, 70)),
    ),
    "discards": Ending(lambda job, queue, now: ended("gone"), error=lambda now: Discard("no longer wanted", code="gone")),
    "finds its backend away": Ending(_away, error=lambda now: BackendUnavailable("refused", backend="ollama")),
    "was asked wrongly": Ending(lambda job, queue, now: ended("caller_fault"), error=lambda now: CallerFault("no such model")),
    # The next two end as a worker asks them to: a person cancelled the job, or its time is over; the worker stops.
    "is stopped": Ending(_timed_out, error=lambda now: AttemptInterrupted("timed_out"), interruption="timed_out"),
    "loses its process": Ending(_died, error=lambda now: ProcessDied("it exited with 9")),
    "is given back": Ending(
        lambda job, queue, now: postponed("released", now),
        error=lambda now: AttemptInterrupted("stopping"),
        interruption="stopping",
    ),
}  # fmt: skip
# Only an attempt that was asked ends like this.
MAKES_ROOM = Ending(
    lambda job, queue, now: postponed("preempted", now),
    error=lambda now: AttemptInterrupted("preempted"),
    interruption="preempted",
)
