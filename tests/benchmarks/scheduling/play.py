"""Plays one hour under one scheme, and measures it."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import time as clock
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gpuqueue import Config, JobHandle, State
from gpuqueue.testing.virtual import Interval, VirtualOllama, VirtualQueue, VirtualTime, VirtualWorker
from tests.benchmarks.scheduling.clients import Direct, Pausing
from tests.benchmarks.scheduling.hours import BATCH, NIGHT, NOMIC, Arrival, Hour

BUDGET_BYTES = 5_000_000_000
BACKGROUND = (BATCH, NIGHT)
NUM_CTX = 65_536  # the longest answer fits, and with it one that is continued


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is configured beside what an hour needs.

    `one_queue` brings all jobs to one, which yields to none. `yielding` is what queues have that yield. `clients` bring the jobs
    to the card without gpuqueue, to a server with one model at a time.
    """

    name: str
    title: str
    one_queue: bool = False
    gpu: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    yielding: Mapping[str, Any] = field(default_factory=dict)
    clients: type[Direct] | None = None

    def plays(self, hour: Hour) -> bool:
        """Say whether it can do what an hour asks for: only a queue of its own has pauses."""
        return (not self.one_queue and self.clients is None) or not any("pause" in queue for queue in hour.queues.values())


SHIPPED, FCFS, DIRECT, ORIGINAL, DRAIN, RESTART = "shipped", "fcfs", "direct", "original", "drain", "restart"
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(SHIPPED, "gpuqueue as shipped"),
        Scheme(RESTART, "… restarts what it stops", models={"resume": "restart"}),
        Scheme(DRAIN, "… lets batch jobs end", yielding={"yield_mode": "drain"}),
        Scheme(FCFS, "first come, first served", one_queue=True, gpu={"affinity": "0s"}),
        Scheme(ORIGINAL, "batch paused for people", clients=Pausing),
        Scheme(DIRECT, "direct to Ollama", clients=Direct),
    )
}


@dataclass(frozen=True, slots=True)
class Played:
    """What came of an hour.

    `waits_s`: from the arrival of each job that counts (not a batch job, or any where there is no other) until its prompt was
    first read for the answer that it got: what an idle card with its model loaded would have spared it. A job that has not
    begun counts with what it has waited. `useful`: the part of the hour in which the card read or wrote what was not thrown
    away, where what a continued job reads again is not counted. `completed`: of batch jobs. `longest_s`: from the first use
    of the card for a batch job to its last, or the end of the hour. `met_count`: of the jobs that count, those for which
    models were switched. `spared_tokens`: of prompts, found in the prompt cache. `paused_starts`: of attempts, inside a pause
    of their queue. `ended_s`: when the last answer was.
    """

    waits_s: list[float]
    useful: float
    loads: int
    completed: int
    longest_s: float
    met_count: int
    overlap_count: int
    over_budget_bytes: int
    spared_tokens: int
    ended_s: float
    paused_starts: int = 0


class Observer(Protocol):
    """Who is told of an hour that is played."""

    def begin(self, gq: VirtualQueue, time: VirtualTime, /) -> None: ...

    def enqueued(self, job: JobHandle, /) -> None: ...

    def end(self) -> None: ...


def play(hour: Hour, scheme: Scheme, *, seed: int, prompt_cache: bool, observer: Observer | None = None) -> Played:
    """Play an hour."""
    time, arrivals = VirtualTime(), hour.arrivals(seed)
    models = {arrival.model.name: arrival.model for arrival in arrivals}
    max_loaded = None if scheme.clients is None else 1
    ollama = VirtualOllama(time, models.values(), prompt_cache=prompt_cache, max_loaded=max_loaded, seed=seed)
    if scheme.clients is not None:
        return _played_by_clients(scheme.clients(time, ollama, hour), time, ollama, hour, arrivals)
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
            time.call_at(arrival.at_s, partial(arrive, arrival))
        time.run(hour.length_s)
        if observer is not None:
            observer.end()
        ended = {str(job.id) for job in gq.jobs(state=State.COMPLETED, limit=10_000)}
        paused_starts = _paused_starts(gq, jobs, hour)
        worker.close()
        time.close()
        gq.close()
    return replace(_measured(ollama, jobs, ended, hour), paused_starts=paused_starts)


def _played_by_clients(clients: Direct, time: VirtualTime, ollama: VirtualOllama, hour: Hour, arrivals: list[Arrival]) -> Played:
    jobs = {str(number): arrival for number, arrival in enumerate(arrivals)}
    for job in jobs.items():
        time.call_at(job[1].at_s, partial(clients.arrive, job))
    time.run(hour.length_s)
    time.close()
    return _measured(ollama, jobs, clients.ended, hour)


def _paused_starts(gq: VirtualQueue, jobs: Mapping[str, Arrival], hour: Hour) -> int:
    """Count the attempts that started inside a pause of their queue, which is within one day of UTC."""
    starts = 0
    with gq.store.reading() as reads:
        for owner, arrival in jobs.items():
            for window in hour.queues[arrival.queue].get("pause", ()):
                began = {attempt["started_at"] for attempt in reads.timeline(int(owner))} | {reads.job(int(owner)).started_at}
                first, last = map(clock.fromisoformat, window.split("-"))
                starts += sum(at is not None and first <= at.time() < last for at in began)
    return starts


def _config(folder: Path, hour: Hour, scheme: Scheme, models: Mapping[str, Any]) -> Config:
    settings = {"gpu": True, "concurrency": 1}
    yields = {name: scheme.yielding if "yields_to" in more else {} for name, more in hour.queues.items()}
    queues = {name: {**settings, **more, **yields[name]} for name, more in hour.queues.items()}
    return Config.load(
        None,
        environ={},
        database=str(folder / "q.db"),
        gpu=[{"budget": BUDGET_BYTES, "margin": "3GB", **hour.gpu, **scheme.gpu}],
        ollama={"url": "http://127.0.0.1:9"},
        models={
            name: {
                "vram": model.size_bytes,
                **({} if model is NOMIC else {"options": {"num_ctx": NUM_CTX}}),
                **hour.models.get(name, {}),
                **scheme.models,
            }
            for name, model in models.items()
        },
        queues={"all": settings} if scheme.one_queue else queues,
    )


def _measured(ollama: VirtualOllama, jobs: Mapping[str, Arrival], ended: set[str], hour: Hour) -> Played:
    uses: dict[str, list[Interval]] = defaultdict(list)
    met, model = set(), ""
    for item in sorted(ollama.intervals):
        uses[item.owner].append(item)
        if item.kind == "load":
            if model not in ("", item.model):
                met.add(item.owner)
            model = item.model
    has_people = any(arrival.queue not in BACKGROUND for arrival in jobs.values())
    waits_s, useful_s, longest_s = [], 0.0, 0.0
    for owner, arrival in jobs.items():
        mine = [item for item in uses[owner] if item.kind in ("prompt", "decode")]
        begun = [number for number, item in enumerate(mine) if item.kind == "prompt" and item.tokens <= arrival.prompt_tokens]
        # What was written before an attempt that started again was thrown away; what a continued one read again is no use.
        kept = mine[begun[-1] :] if begun else []
        useful_s += sum(item.end_s - item.start_s for item in kept[:1] + [item for item in kept if item.kind == "decode"])
        if arrival.queue in BACKGROUND and uses[owner]:
            longest_s = max(longest_s, (mine[-1].end_s if owner in ended else hour.length_s) - uses[owner][0].start_s)
        if arrival.counts and (arrival.queue not in BACKGROUND or not has_people):
            waits_s.append((kept[0].start_s if kept else hour.length_s) - arrival.at_s)
    return Played(
        waits_s=waits_s,
        useful=useful_s / hour.length_s,
        loads=sum(item.kind == "load" for item in ollama.intervals),
        completed=sum(jobs[owner].queue in BACKGROUND for owner in ended),
        longest_s=longest_s,
        met_count=sum(jobs[owner].queue not in BACKGROUND for owner in met),
        overlap_count=ollama.overlap_count,
        over_budget_bytes=max(0, ollama.peak_bytes - BUDGET_BYTES),
        spared_tokens=ollama.spared_tokens,
        ended_s=max((item.end_s for item in ollama.intervals if item.kind == "decode"), default=0.0),
    )
