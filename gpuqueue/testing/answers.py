"""Checks the answer of a policy to each decision; calls no policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpuqueue.contract.plugin_set import wrong_answer
from gpuqueue.domain.answers import Demand, Limits, Placement, Preemption, Wait
from gpuqueue.domain.job import FINISHED, Job

__all__ = ["what_is_wrong"]


def what_is_wrong(hook: str, answer: Any, details: Any) -> str:
    """Say what is wrong with an answer that is not None, "" if nothing is."""
    wrong = wrong_answer(hook, answer)
    check = _CHECKS.get(hook)
    return wrong if wrong or check is None else check(answer, details)


def _limits(answer: Limits, _details: Any) -> str:
    if answer.concurrency is not None and not (isinstance(answer.concurrency, int) and answer.concurrency >= 0):
        return "concurrency must be an integer of at least 0, or None"
    return "" if isinstance(answer.reason, str) and answer.reason.strip() else "reason must be a non-empty string"


def _preemptions(answer: Sequence[Any], details: Any) -> str:
    if not all(isinstance(item, Preemption) for item in answer):
        return "expected a sequence of Preemptions, or None"
    running = {(item.job_id, item.lease) for device in details.view.devices.values() for item in device.reservations}
    wrong = [item for item in answer if (item.job_id, item.lease) not in running]
    return f"no attempt of job {wrong[0].job_id} with lease {wrong[0].lease} is on a device" if wrong else ""


def _demand(answer: Demand, _details: Any) -> str:
    if not _is_size(answer.vram_bytes):
        return "vram_bytes must be an integer number of bytes, 0 for none"
    return "" if isinstance(answer.model, str) else 'model must be a string, "" for none'


def _place(answer: Placement | Wait, details: Any) -> str:
    if isinstance(answer, Wait):
        return ""
    if answer.device not in details.view.devices:
        return f"unknown device {answer.device!r}. Devices: {', '.join(details.view.devices) or 'none'}"
    return "" if _is_size(answer.reserved_bytes) else "reserved_bytes must be an integer number of bytes"


def _order(answer: Sequence[Any], details: Any) -> str:
    if not all(isinstance(item, Job) for item in answer):
        return "expected a sequence of the candidates, or None"
    known = {item.id for item in details.candidates}
    given = [item.id for item in answer]
    if not known.issuperset(given):
        return f"jobs {sorted(set(given) - known)} are not candidates"
    return "" if len(set(given)) == len(given) else "a candidate appears more than once"


def _retention(answer: Mapping[Any, Any], _details: Any) -> str:
    if not set(answer) <= set(FINISHED):
        return f"expected {{state: seconds}} with the states {', '.join(FINISHED)}, or None"
    wrong = [kept_s for kept_s in answer.values() if kept_s is not None and not (_is_number(kept_s) and kept_s >= 0)]
    return f"{wrong[0]!r} is not a number of seconds; use None to keep jobs forever" if wrong else ""


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_CHECKS: Mapping[str, Callable[[Any, Any], str]] = {
    "queue_limits": _limits,
    "job_demand": _demand,
    "place_job": _place,
    "order_candidates": _order,
    "choose_preemptions": _preemptions,
    "retention": _retention,
}
