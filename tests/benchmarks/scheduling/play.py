"""Plays one hour under one scheme, and measures it."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpuqueue import Config, JobHandle, State
from gpuqueue.testing.virtual import Interval, VirtualOllama, VirtualQueue, VirtualTime, VirtualWorker
from tests.benchmarks.scheduling.hours import BATCH, HOUR_S, NOMIC, Arrival, Hour

BUDGET_BYTES = 5_000_000_000
CONTEXT_BYTES = 100_000_000
NUM_CTX = 65_536  # the longest answer fits, and with it one that is continued


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is configured beside what an hour needs; `one_queue` brings all jobs to one, which yields to none."""

    name: str
    title: str
    one_queue: bool = False
    gpu: Mapping[str, Any] = field(default_factory=dict)


SHIPPED, FCFS = "shipped", "fcfs"
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(SHIPPED, "gpuqueue as shipped"),
        Scheme(FCFS, "first come, first served", one_queue=True, gpu={"affinity": "0s"}),
    )
}


@dataclass(frozen=True, slots=True)
class Played:
    """What came of an hour.

    `waits_s`: from the arrival of each job that counts (not a batch job, or any where there is no other) until its prompt was
    first read for the answer that it got: what an idle card with its model loaded would have spared it. A job that has not begun
    counts with what it has waited. `useful`: the part of the hour in which the card read or wrote what was not thrown away, where
    what a continued job reads again is not counted. `completed`: of batch jobs.
    """

    waits_s: list[float]
    useful: float
    loads: int
    completed: int
    preemptions: int
    overlap_count: int
    over_budget_bytes: int


class Observer(Protocol):
    """Who is told of an hour that is played."""

    def begin(self, gq: VirtualQueue, time: VirtualTime, /) -> None: ...

    def enqueued(self, job: JobHandle, /) -> None: ...

    def end(self) -> None: ...


def play(hour: Hour, scheme: Scheme, *, seed: int, prompt_cache: bool, observer: Observer | None = None) -> Played:
    """Play an hour."""
    time = VirtualTime()
    arrivals = hour.arrivals(seed)
    models = {arrival.model.name: arrival.model for arrival in arrivals}
    ollama = VirtualOllama(time, models.values(), prompt_cache=prompt_cache, seed=seed)
    with tempfile.TemporaryDirectory(prefix="gpuqueue-virtual-") as folder:
        gq = VirtualQueue(_config(Path(folder), hour, scheme, models), time)
        worker = VirtualWorker(gq, time, ollama)
        jobs: dict[str, Arrival] = {}
        if observer is not None:
            observer.begin(gq, time)

        def arrive(arrival: Arrival) -> None:
            queue = "all" if scheme.one_queue else arrival.queue
            words = "x" * (4 * arrival.prompt_tokens)
            if arrival.model is NOMIC:
                job = gq.ollama.embed(arrival.model.name, input=words, queue=queue)
            else:
                said = [{"role": "user", "content": words}]
                options = {"num_predict": arrival.output_tokens}
                job = gq.ollama.chat(arrival.model.name, messages=said, queue=queue, think=False, options=options)
            jobs[str(job.id)] = arrival
            if observer is not None:
                observer.enqueued(job)

        for arrival in arrivals:
            time.call_at(arrival.at_s, lambda arrival=arrival: arrive(arrival))  # type: ignore[misc]
        time.run(HOUR_S)
        if observer is not None:
            observer.end()
        ended = {str(job.id) for job in gq.jobs(state=State.COMPLETED, limit=10_000)}
        preemptions = sum(gq.job(int(owner)).record.preemptions for owner in jobs if jobs[owner].queue == BATCH)
        worker.close()
        time.close()
        gq.close()
    return _measured(ollama, jobs, ended, preemptions)


def _config(folder: Path, hour: Hour, scheme: Scheme, models: Mapping[str, Any]) -> Config:
    settings = {"gpu": True, "concurrency": 1}
    queues = {"all": settings} if scheme.one_queue else {name: {**settings, **more} for name, more in hour.queues.items()}
    return Config.load(
        None,
        environ={},
        database=str(folder / "q.db"),
        gpu=[{"budget": BUDGET_BYTES, "margin": "3GB", **hour.gpu, **scheme.gpu}],
        ollama={"url": "http://127.0.0.1:9"},
        models={
            name: {"vram": model.size_bytes, **({} if model is NOMIC else {"options": {"num_ctx": NUM_CTX}})}
            for name, model in models.items()
        },
        queues=queues,
    )


def _measured(ollama: VirtualOllama, jobs: Mapping[str, Arrival], ended: set[str], preemptions: int) -> Played:
    uses: dict[str, list[Interval]] = defaultdict(list)
    for item in ollama.intervals:
        uses[item.owner].append(item)
    has_people = any(arrival.queue != BATCH for arrival in jobs.values())
    waits_s, useful_s = [], 0.0
    for owner, arrival in jobs.items():
        mine = [item for item in uses[owner] if item.kind in ("prompt", "decode")]
        begun = [number for number, item in enumerate(mine) if item.kind == "prompt" and item.tokens <= arrival.prompt_tokens]
        # What was written before an attempt that started again was thrown away; what a continued one read again is no use.
        kept = mine[begun[-1] :] if begun else []
        useful_s += sum(item.end_s - item.start_s for item in kept[:1] + [item for item in kept if item.kind == "decode"])
        if arrival.counts and (arrival.queue != BATCH or not has_people):
            waits_s.append((kept[0].start_s if kept else HOUR_S) - arrival.at_s)
    return Played(
        waits_s=waits_s,
        useful=useful_s / HOUR_S,
        loads=sum(item.kind == "load" for item in ollama.intervals),
        completed=sum(jobs[owner].queue == BATCH for owner in ended),
        preemptions=preemptions,
        overlap_count=ollama.overlap_count,
        over_budget_bytes=max(0, ollama.peak_bytes - BUDGET_BYTES),
    )
