"""Owns what the benchmark says at its end: tables of 80 columns, and what must hold of the figures; runs nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.scheduling.real_time.schemes import BASELINE, CONTINUE, FCFS, ORIGINAL, PREEMPT, SCHEMES

Figures = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Figures]]  # {trace: {scheme: figures}}
SLACK_S = 2.0
TENTH = 0.1
PREEMPT_USE, CONTINUE_USE = 0.95, 0.98
LOADS = 0.5


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold; `holds` None means that a scheme that it needs was not run."""

    what: str
    holds: bool | None
    figures: str


def tables(trace: str, about: str, rows: Mapping[str, Figures]) -> str:
    """Write both tables of a trace: what people felt, and what the card did."""
    count = next(iter(rows.values()))["realtime_count"]
    lines = [*textwrap.wrap(f"{trace}: {about}", 80), ""]
    lines.append(f"{f'{count} realtime jobs, in':26}{'wait':>18}{'first token':>18}{'excess wait':>18}")
    lines.append(f"{'seconds of the card':26}" + f"{'p50':>6}{'p95':>6}{'p99':>6}" * 3)
    for name, found in rows.items():
        three = [value for key in ("wait_s", "first_token_s", "excess_wait_s") for value in found.get(key, {}).values()]
        lines.append(f"{SCHEMES[name].title:26}" + "".join(f"{_short(value):>6}" for value in three))
    lines += ["", f"{'':26}{'batch':>6}{'model':>6}{'in':>7}{'useful':>7}{'wasted':>8}{'peak':>6}{'over':>7}{'over-':>6}"]
    lines.append(f"{'':26}{'done':>6}{'loads':>6}{'use':>7}{'':>7}{'tokens':>8}{'GB':>6}{'budget':>7}{'laps':>6}")
    for name, found in rows.items():
        done = "–" if found["makespan_s"] is None else f"{found['makespan_s']:.0f}"
        lines.append(
            f"{SCHEMES[name].title:26}{done:>6}{found['loads']:>6}"
            f"{found['decoding_fraction']:>7.1%}{found['useful_fraction']:>7.1%}{found['wasted_tokens']:>8}"
            f"{found['peak_bytes'] / 1e9:>6.1f}{found['over_budget_bytes'] / 1e9:>7.1f}{found['overlaps']:>6}"
        )
    others = [found["other_cores"] for found in rows.values() if found["other_cores"] is not None]
    if others:
        lines += ["", f"Other work took {min(others):.1f} to {max(others):.1f} of this machine's cores meanwhile."]
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the promises of one trace are measured with, in the card's seconds."""

    load_s: float  # one model load
    affinity_s: float


def checks(results: Results, bounds: Mapping[str, Bounds], *, two_models: str) -> Iterator[Check]:
    """Say what must hold of the whole run, and whether it does."""
    for trace, rows in results.items():
        for name, found in rows.items():
            title = f"{trace}, {SCHEMES[name].title}"
            if SCHEMES[name].is_gpuqueue:
                exact = found["overlaps"] == 0 and found["over_budget_bytes"] == 0
                yield Check(
                    f"{title}: no overlap, nothing above the budget",
                    exact,
                    f"{found['overlaps']} overlaps, {found['over_budget_bytes']} bytes above",
                )
                yield Check(
                    f"{title}: nothing waits past its affinity bound",
                    found["overtaken_s"] <= bounds[trace].affinity_s,
                    f"passed over for {found['overtaken_s']:.1f} s, the bound is {bounds[trace].affinity_s:.0f} s",
                )
        yield from _of_preemption(trace, rows, bounds[trace].load_s + SLACK_S)
        if trace == two_models:
            yield _few_loads(trace, rows)


def _of_preemption(trace: str, rows: Mapping[str, Figures], bound_s: float) -> Iterator[Check]:
    has_baseline = BASELINE in rows and PREEMPT in rows
    excess_s = rows[PREEMPT]["excess_wait_s"]["p95"] if has_baseline else 0.0
    yield Check(
        f"{trace}: preempt's excess wait p95 is at most one model load + {SLACK_S:g} s",
        excess_s <= bound_s if has_baseline else None,
        f"{excess_s:.2f} s of {bound_s:.2f} s",
    )
    both = has_baseline and ORIGINAL in rows
    original_s = rows[ORIGINAL]["excess_wait_s"]["p95"] if both else 0.0
    yield Check(
        f"{trace}: preempt's excess wait p95 is at most a tenth of the original scheme's",
        excess_s <= TENTH * original_s if both else None,
        f"{excess_s:.2f} s, a tenth of {original_s:.2f} s is {TENTH * original_s:.2f} s",
    )
    for name, least in ((PREEMPT, PREEMPT_USE), (CONTINUE, CONTINUE_USE)):
        both = name in rows and FCFS in rows
        ratio = rows[name]["useful_fraction"] / rows[FCFS]["useful_fraction"] if both else 0.0
        yield Check(
            f"{trace}: {SCHEMES[name].title} has at least {least:g} × the useful card time of first come, first served",
            ratio >= least if both else None,
            f"{ratio:.3f} ×",
        )


def _few_loads(trace: str, rows: Mapping[str, Figures]) -> Check:
    both = PREEMPT in rows and FCFS in rows
    mine, theirs = (rows[PREEMPT]["loads"], rows[FCFS]["loads"]) if both else (0, 0)
    return Check(
        f"{trace}: gpuqueue preempt loads models at most half as often as first come, first served",
        mine <= LOADS * theirs if both else None,
        f"{mine} loads, half of {theirs} is {theirs / 2:g}",
    )


def worded(check: Check) -> str:
    mark = {True: "✓", False: "✗", None: "·"}[check.holds]
    return f"{mark} {check.what}: {check.figures if check.holds is not None else 'not run'}"
