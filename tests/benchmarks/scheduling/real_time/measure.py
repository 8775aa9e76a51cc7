"""Owns what a recording amounts to: each job's waits, the card's time, and the figures of a whole run; runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.benchmarks.scheduling.percentiles import percentile
from tests.benchmarks.scheduling.real_time.schemes import BUDGET_BYTES
from tests.benchmarks.scheduling.real_time.stage import Recording, is_answered, job_number
from tests.benchmarks.scheduling.real_time.traces import BATCH, REALTIME, Trace

PERCENTS = (50, 95, 99)
LOAD, UNLOAD, PROMPT, DECODE = "load", "unload", "prompt", "decode"


@dataclass(frozen=True, slots=True)
class Interval:
    """One use of the card, in its seconds since the trace began; `job` None belongs to no job: memory that comes back."""

    start_s: float
    end_s: float
    kind: str
    model: str
    job: int | None
    queue: str


@dataclass(frozen=True, slots=True)
class JobTimes:
    """One job: when it came, when the card first turned to it, when its prompt was first read, its first token, its end."""

    arrived_s: float
    turned_to_s: float
    read_s: float
    first_token_s: float
    ended_s: float
    request_count: int
    output_tokens: int  # written for it, in all its requests

    @property
    def wait_s(self) -> float:
        return self.read_s - self.arrived_s

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrived_s


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a trace under a scheme amounts to."""

    intervals: tuple[Interval, ...]
    jobs: dict[int, JobTimes]
    peak_bytes: int
    overlap_count: int
    other_cores: float | None = None


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": percentile(values, percent) for percent in PERCENTS} if values else {}


def read_recording(recording: Recording, trace: Trace, *, speed: float) -> Run:
    """Bring together what the card did and for which job; what was before the trace began is left out."""
    owners = {item.request: job_number(item) for item in recording.served if item.request}
    tokens: dict[int, int] = {}
    counts: dict[int, int] = {}
    for served in recording.served:
        number = job_number(served)
        if number is not None:
            tokens[number] = tokens.get(number, 0) + served.output_tokens
            counts[number] = counts.get(number, 0) + is_answered(served)

    def at(moment_s: float) -> float:
        return (moment_s - recording.began_s) * speed

    intervals = []
    for item in recording.computed:
        number = owners.get(item.request)
        if item.kind in (LOAD, PROMPT, DECODE) and item.started_s >= recording.began_s:
            queue = "" if number is None else trace.arrivals[number].queue
            model = item.owner.partition("#")[0]
            intervals.append(Interval(at(item.started_s), at(item.ended_s), item.kind, model, number, queue))
    for freed in recording.released:
        if freed.started_s >= recording.began_s:
            intervals.append(Interval(at(freed.started_s), at(freed.ended_s), UNLOAD, freed.owner.partition("#")[0], None, ""))
    intervals.sort(key=lambda item: item.start_s)
    jobs = {
        number: _job(trace, number, [item for item in intervals if item.job == number], counts[number], tokens[number])
        for number in counts
    }
    return Run(tuple(intervals), jobs, recording.peak_bytes, recording.overlap_count, recording.other_cores)


def _job(trace: Trace, number: int, mine: Sequence[Interval], request_count: int, output_tokens: int) -> JobTimes:
    arrival = trace.arrivals[number]
    prompts = [item for item in mine if item.kind == PROMPT]
    decodes = [item for item in mine if item.kind == DECODE]
    rate = output_tokens / sum(item.end_s - item.start_s for item in decodes)
    return JobTimes(
        arrived_s=arrival.at_s,
        turned_to_s=mine[0].start_s,
        read_s=prompts[0].start_s,
        first_token_s=decodes[0].start_s + 1 / rate,
        ended_s=mine[-1].end_s,
        request_count=request_count,
        output_tokens=output_tokens,
    )


def figures(run: Run, trace: Trace, baseline: Run | None) -> dict[str, object]:
    """Say what a run comes to; `baseline` has the realtime jobs of the same trace under other numbers, in the same order."""
    of = {queue: [number for number in sorted(run.jobs) if trace.arrivals[number].queue == queue] for queue in (REALTIME, BATCH)}
    people = [run.jobs[number] for number in of[REALTIME]]
    span_s = max(job.ended_s for job in run.jobs.values())
    reading_s = sum(item.end_s - item.start_s for item in run.intervals if item.kind in (PROMPT, DECODE))
    useful_s = sum(trace.arrivals[number].work_s for number in run.jobs)
    written = sum(job.output_tokens for job in run.jobs.values())
    loads = [item.end_s - item.start_s for item in run.intervals if item.kind == LOAD]
    result: dict[str, object] = {
        "realtime_count": len(people),
        "wait_s": percentiles([job.wait_s for job in people]),
        "first_token_s": percentiles([job.ttft_s for job in people]),
        "span_s": span_s,
        "makespan_s": max((run.jobs[number].ended_s for number in of[BATCH]), default=None),
        "loads": len(loads),
        "load_s": percentiles(loads),
        "decoding_fraction": reading_s / span_s,
        "useful_fraction": useful_s / span_s,
        "wasted_tokens": written - sum(trace.arrivals[number].output_tokens for number in run.jobs),
        "peak_bytes": run.peak_bytes,
        "over_budget_bytes": max(0, run.peak_bytes - BUDGET_BYTES),
        "overlaps": run.overlap_count,
        "other_cores": run.other_cores,
        "preemptions": sum(run.jobs[number].request_count - 1 for number in of[BATCH]),
        "overtaken_s": overtaken_s(run, trace),
    }
    if baseline is not None:
        alone = [baseline.jobs[number] for number in sorted(baseline.jobs)]
        pairs = list(zip(people, alone, strict=True))
        result["excess_wait_s"] = percentiles([job.wait_s - base.wait_s for job, base in pairs])
        result["excess_first_token_s"] = percentiles([job.ttft_s - base.ttft_s for job, base in pairs])
    return result


def overtaken_s(run: Run, trace: Trace) -> float:
    """Say for how long jobs behind the unluckiest batch job went before it, the realtime work in between left out.

    From the beginning of the first that stands behind it, after its own turn had come (all before it have begun), to the
    beginning of the last.
    """
    began = {number: job.turned_to_s for number, job in run.jobs.items() if trace.arrivals[number].queue == BATCH}
    longest_s = turn_s = 0.0
    for number in sorted(began):
        turn_s = max(turn_s, trace.arrivals[number].at_s)
        passing = [at_s for other, at_s in began.items() if other > number and turn_s < at_s < began[number]]
        if passing:
            people_s = sum(
                item.end_s - item.start_s
                for item in run.intervals
                if item.queue == REALTIME and min(passing) <= item.start_s < max(passing)
            )
            longest_s = max(longest_s, max(passing) - min(passing) - people_s)
        turn_s = max(turn_s, began[number])
    return longest_s


def model_load_s(runs: Iterable[Run], model: str) -> float:
    """Say how long a load of the model took, in the card's seconds: the p95 of all runs, as waits are compared by theirs."""
    loads = [item.end_s - item.start_s for run in runs for item in run.intervals if (item.kind, item.model) == (LOAD, model)]
    return percentile(loads, 95) if loads else 0.0
