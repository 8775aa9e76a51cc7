"""Owns what a right answer to each decision is; asks nobody."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from gpuqueue.domain.answers import Demand, Hold, Limits, Placement, Preemption, Wait
from gpuqueue.domain.job import FINISHED, Job
from gpuqueue.domain.verdicts import Discard, Retry, Snooze

__all__ = ["what_is_wrong"]


def what_is_wrong(hook: str, answer: Any, details: Any) -> str:
    """Say what is wrong with an answer that is not None, "" when nothing is."""
    return _CHECKS[hook](answer, details)


def _hold(answer: Any, _details: Any) -> str:
    if not isinstance(answer, Hold):
        return "the answer is a Hold or None"
    return _words(answer)


def _limits(answer: Any, _details: Any) -> str:
    if not isinstance(answer, Limits):
        return "the answer is Limits or None"
    if answer.concurrency is not None and not (isinstance(answer.concurrency, int) and answer.concurrency >= 0):
        return "concurrency is a whole number, or None"
    return "" if isinstance(answer.reason, str) and answer.reason.strip() else "reason is a text that is not empty"


def _preemptions(answer: Any, details: Any) -> str:
    if not isinstance(answer, Sequence) or not all(isinstance(item, Preemption) for item in answer):
        return "the answer is a sequence of Preemptions, or None"
    running = {(item.job_id, item.lease) for device in details.view.devices.values() for item in device.reservations}
    wrong = [item for item in answer if (item.job_id, item.lease) not in running]
    return f"no attempt of job {wrong[0].job_id} with that lease is on a device" if wrong else ""


def _demand(answer: Any, _details: Any) -> str:
    if not isinstance(answer, Demand):
        return "the answer is a Demand or None"
    if not _is_size(answer.vram_bytes):
        return "vram_bytes is a whole number of bytes, 0 for none"
    return "" if isinstance(answer.model, str) else 'model is a text, "" for none'


def _place(answer: Any, details: Any) -> str:
    if isinstance(answer, Wait):
        return _words(answer)
    if not isinstance(answer, Placement):
        return "the answer is a Placement, a Wait or None"
    if answer.device not in details.view.devices:
        return f"there is no device {answer.device!r}; there are: {', '.join(details.view.devices) or 'none'}"
    return "" if _is_size(answer.reserved_bytes) else "reserved_bytes is a whole number of bytes"


def _order(answer: Any, details: Any) -> str:
    if not isinstance(answer, Sequence) or not all(isinstance(item, Job) for item in answer):
        return "the answer is a sequence of the candidates, or None"
    known = {item.id for item in details.candidates}
    given = [item.id for item in answer]
    if not known.issuperset(given):
        return f"jobs {sorted(set(given) - known)} are no candidates"
    return "" if len(set(given)) == len(given) else "each candidate comes once"


def _verdict(answer: Any, _details: Any) -> str:
    if isinstance(answer, type) and issubclass(answer, Retry | Snooze | Discard):
        return f"the answer is an object: {answer.__name__}(…)"
    return "" if isinstance(answer, Retry | Snooze | Discard) else "the answer is a Retry, a Snooze, a Discard or None"


def _retention(answer: Any, _details: Any) -> str:
    if not isinstance(answer, Mapping) or not set(answer) <= set(FINISHED):
        return f"the answer is {{state: seconds}} of the states {', '.join(FINISHED)}, or None"
    wrong = [kept_s for kept_s in answer.values() if kept_s is not None and not (_is_number(kept_s) and kept_s >= 0)]
    return f"{wrong[0]!r} is no number of seconds; None keeps for ever" if wrong else ""


def _words(answer: Hold | Wait) -> str:
    if not (
        isinstance(answer.reason, str) and answer.reason.strip() and isinstance(answer.detail, str) and answer.detail.strip()
    ):
        return "reason (one word) and detail (the sentence that people read) are texts that are not empty"
    if answer.until is None:
        return ""
    if not isinstance(answer.until, datetime) or answer.until.utcoffset() is None:
        return "until is an aware datetime, or None"
    return ""


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_CHECKS: Mapping[str, Callable[[Any, Any], str]] = {
    "queue_hold": _hold,
    "queue_limits": _limits,
    "job_demand": _demand,
    "place_job": _place,
    "order_candidates": _order,
    "choose_preemptions": _preemptions,
    "attempt_failed": _verdict,
    "retention": _retention,
}
