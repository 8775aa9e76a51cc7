"""Judges a run: turns its measurements into figures and the scenario's checklist."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuqueue.domain.errors import REFUSAL
from gpuqueue.domain.units import format_duration, format_size

ANSWER_LIMIT_S = 2.0  # how long a person may wait to hear that the service is unavailable


@dataclass(frozen=True, slots=True)
class Outage:
    """What happened while Ollama was unavailable; `realtime_answer` is what the realtime caller was told."""

    realtime_answer: str
    answered_after_s: float
    batch_snoozed_count: int
    attempts_spent_count: int
    rfa_completed_count: int
    recovered: bool
    recovered_after_s: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything measured in one run. `mixed_up` names answers and files that do not match their request."""

    enqueued_count: int
    completed_count: int
    failed_count: int
    expected_failed_count: int
    mixed_up: tuple[str, ...]
    checked_count: int
    realtime_waits_s: Sequence[float]
    first_piece_s: Sequence[float]
    batch_completed_count: int
    batch_beside_realtime_count: int
    hold_counts: Mapping[str, int]
    paused_s: float
    started_in_pause_count: int
    realtime_in_pause_count: int
    window_answer: str  # the window's hold at noon; "" without one
    most_running: Mapping[str, int]
    overlap_count: int
    peak_bytes: int
    budget_bytes: int
    load_count: int
    unload_count: int | None  # None for a real card, which does not tell
    left_bytes: int | None  # still on the card at the end; None if it may belong to other programs
    spill_count: int
    model_peak_count: int
    reading_count: int
    needs_readings: bool
    rfa_waits_s: Sequence[float]
    rfa_on_gpu_count: int
    rfa_file_count: int
    outage: Outage | None
    overlaps_by: str  # how they were counted

    @property
    def lost_count(self) -> int:
        return self.enqueued_count - self.completed_count - self.failed_count


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the scenario, whether it held, and what was measured; `passed` is None if it was not tried."""

    rule: str
    passed: bool | None
    evidence: str


def checklist(found: Evidence) -> list[Check]:
    """Judge a run by the scenario's rules."""
    return [
        _realtime_first(found),
        _working_hours(found),
        _one_at_a_time(found),
        _memory(found),
        _fallback(found),
        _rfa(found),
        _nothing_lost(found),
    ]


def holds(checks: Sequence[Check]) -> bool:
    """Return whether no rule was broken."""
    return all(check.passed is not False for check in checks)


def summary(found: Evidence) -> dict[str, Any]:
    """Return the figures of `--json`; durations are real seconds of this run."""
    outage = found.outage
    return {
        "completed": found.completed_count,
        "failed": found.failed_count,
        "lost": found.lost_count,
        "realtime": {
            "wait_p50_s": _rounded(percentile(found.realtime_waits_s, 50)),
            "wait_p95_s": _rounded(percentile(found.realtime_waits_s, 95)),
        },
        "batch": {"completed": found.batch_completed_count, "holds": dict(sorted(found.hold_counts.items()))},
        "rfa": {"wait_p95_s": _rounded(percentile(found.rfa_waits_s, 95))},
        "gpu": {
            "overlaps": found.overlap_count,
            "peak_bytes": found.peak_bytes,
            "budget_bytes": found.budget_bytes,
            "loads": found.load_count,
        },
        "outage": None
        if outage is None
        else {
            "realtime_answer": outage.realtime_answer,
            "batch_snoozed": outage.batch_snoozed_count,
            "recovered": outage.recovered,
        },
    }


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile, one of the values; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _realtime_first(found: Evidence) -> Check:
    yielded_count = found.hold_counts.get("yielding", 0)
    p50_s, p95_s = percentile(found.realtime_waits_s, 50), percentile(found.realtime_waits_s, 95)
    return Check(
        "Realtime pauses batch",
        found.batch_beside_realtime_count == 0 and yielded_count > 0 and bool(found.realtime_waits_s),
        f"{_many(found.batch_beside_realtime_count, 'batch job')} started alongside {len(found.realtime_waits_s)} realtime jobs; "
        f"batch yielded {yielded_count}×; waits {_words(p50_s)} (p50), {_words(p95_s)} (p95); "
        f"first output after {_words(percentile(found.first_piece_s, 50))}",
    )


def _working_hours(found: Evidence) -> Check:
    passed = found.started_in_pause_count == 0 and found.paused_s > 0 and bool(found.window_answer)
    return Check(
        "Batch pauses in working hours",
        passed,
        f"paused {format_duration(found.paused_s)}: {_many(found.started_in_pause_count, 'batch job')} and "
        f"{found.realtime_in_pause_count} realtime started; {found.window_answer or 'the window does not hold it at noon'}",
    )


def _one_at_a_time(found: Evidence) -> Check:
    most = {name: found.most_running.get(name, 0) for name in ("ai-realtime", "ai-batch")}
    passed = found.overlap_count == 0 and all(count == 1 for count in most.values())
    running = " and ".join(f"{count} in {name}" for name, count in most.items())
    overlaps = _many(found.overlap_count, "overlap")
    return Check("One GPU job at a time", passed, f"at most {running} at once; {overlaps} {found.overlaps_by}")


def _memory(found: Evidence) -> Check:
    passed = (
        found.peak_bytes <= found.budget_bytes
        and found.spill_count == 0
        and found.model_peak_count <= 1
        and not found.left_bytes
        and (found.reading_count > 0 or not found.needs_readings)
    )
    said = [f"peak {format_size(found.peak_bytes)} of {format_size(found.budget_bytes)}", _many(found.load_count, "load")]
    if found.unload_count is not None:
        said.append(_many(found.unload_count, "unload"))
    if found.left_bytes is not None:
        said.append(f"{format_size(found.left_bytes)} left at the end")
    said.append(f"at most {_many(found.model_peak_count, 'model')} at once")
    said.append(_many(found.reading_count, "NVML reading") if found.reading_count else "no NVML here, only the budget")
    return Check("VRAM watched and within budget", passed, ", ".join(said))


def _fallback(found: Evidence) -> Check:
    rule = "Fallback when the GPU is unavailable"
    outage = found.outage
    if outage is None:
        return Check(rule, None, "skipped: the demo does not stop a real Ollama")
    passed = (
        outage.realtime_answer == REFUSAL
        and outage.answered_after_s <= ANSWER_LIMIT_S
        and outage.batch_snoozed_count > 0
        and outage.attempts_spent_count == 0
        and outage.recovered
    )
    recovered = (
        f"batch ran again {_words(outage.recovered_after_s)} after its return" if outage.recovered else "batch did not recover"
    )
    return Check(
        rule,
        passed,
        f"realtime was told “{outage.realtime_answer or 'nothing'}” after {_words(outage.answered_after_s)}; "
        f"{_many(outage.batch_snoozed_count, 'batch job')} postponed, {_many(outage.attempts_spent_count, 'attempt')} spent, "
        f"{recovered}",
    )


def _rfa(found: Evidence) -> Check:
    during = found.outage.rfa_completed_count if found.outage else 0
    passed = found.rfa_on_gpu_count == 0 and bool(found.rfa_waits_s) and (found.outage is None or during > 0)
    while_away = f", {during} ended while it was unavailable" if found.outage else ""
    return Check(
        "RFA never uses the GPU",
        passed,
        f"{found.rfa_on_gpu_count} of {len(found.rfa_waits_s)} jobs got a device{while_away}; "
        f"{found.rfa_file_count} files written; waits {_words(percentile(found.rfa_waits_s, 95))} (p95)",
    )


def _nothing_lost(found: Evidence) -> Check:
    passed = found.lost_count == 0 and found.failed_count == found.expected_failed_count and not found.mixed_up
    right = f"{found.checked_count} answers and files checked"
    if found.mixed_up:
        right = f"wrong: {', '.join(found.mixed_up)}"
    refused = f"{found.failed_count} refused as expected" if found.failed_count else "0 failed"
    if found.failed_count != found.expected_failed_count:
        refused = f"{found.failed_count} failed, {found.expected_failed_count} expected"
    return Check(
        "Nothing lost, nothing mixed up",
        passed,
        f"{found.enqueued_count} jobs: {found.completed_count} completed, {refused}, {found.lost_count} lost; {right}",
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _words(seconds: float | None) -> str:
    return "never" if seconds is None else format_duration(seconds)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
