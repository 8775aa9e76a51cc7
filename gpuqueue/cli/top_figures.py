"""Reads everything that `top` shows in one snapshot, and computes rates from earlier ones; draws nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from gpuqueue.client.queue import GPUQueue
from gpuqueue.contract.reads import Reads
from gpuqueue.decisions.evaluation import explain, known_holds, limited
from gpuqueue.decisions.policies import in_force
from gpuqueue.decisions.policies.windows import parse_window
from gpuqueue.decisions.view import build, largest_budget
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.errors import FileReplaced, StoreError
from gpuqueue.domain.estimates import left_s, run_s
from gpuqueue.domain.explanation import QueueContext, RunningJob
from gpuqueue.domain.job import Job, RunningAttempt, State
from gpuqueue.domain.models import full_name
from gpuqueue.domain.room import taken_bytes
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import to_us
from gpuqueue.domain.view import DeviceView, QueueView, View
from gpuqueue.domain.windows import held_until, next_edge, parse_zone

JOBS_OF_A_QUEUE = 100  # the most that are read
RATE_S = 5.0  # the period of a rate
SHORTEST_S = 0.2  # a shorter period gives no useful rate

__all__ = ["DeviceFigures", "Edge", "Figures", "Figuring", "JobFigures", "QueueFigures", "ServiceFigures"]

QueueState = Literal["running", "waiting", "held", "paused", "no worker", "idle"]
Change = Literal["pause begins", "pause ends", "limits begin", "limits end"]


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """One queue; `holds` are the reasons why it starts nothing now: its own, or if it runs no job those of its first job."""

    name: str
    state: QueueState
    waiting_count: int
    running_count: int
    completed_count: int
    discarded_count: int
    cancelled_count: int
    holds: tuple[Hold, ...] = ()
    next_job: int | None = None


@dataclass(frozen=True, slots=True)
class JobFigures:
    """A running job, or the first waiting job of its queue; then `waits_for` has the reasons."""

    id: int
    queue: str
    task: str
    model: str
    attempt: int
    max_attempts: int
    is_running: bool = True
    lease: int = 0
    started_at: datetime | None = None
    worker_id: str | None = None
    device: str | None = None
    elapsed_s: float | None = None
    progress: float | None = None
    note: str = ""
    output_tokens: int = 0
    tokens_per_s: float | None = None  # None until there are two samples
    left_s: float | None = None
    stopping: Literal["", "cancelled", "makes room"] = ""
    waits_for: tuple[Hold, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """One device; None is unknown. `promised_bytes` are reserved for models that are not loaded and for jobs without one."""

    name: str
    card: str | None
    budget_bytes: int
    total_bytes: int | None
    used_bytes: int | None
    reserved_bytes: int
    resident_bytes: int
    promised_bytes: int
    others_bytes: int | None
    models: tuple[str, ...]  # loaded when a worker last checked, which is never while a job runs
    models_in_use: tuple[str, ...]  # of running jobs
    cleaning: tuple[int, ...]  # jobs that have ended and still hold their memory
    temperature_c: int | None
    utilisation_percent: int | None
    read_at: datetime | None
    lost: str | None


@dataclass(frozen=True, slots=True)
class Edge:
    """The next time at which a window changes what a queue may do."""

    queue: str
    at: datetime
    change: Change


@dataclass(frozen=True, slots=True)
class ServiceFigures:
    """A service that a worker runs, such as a mirror; if `worker_id` is None, no worker runs it."""

    name: str
    worker_id: str | None
    lag_s: float | None  # how far it is behind, as it reported at `noted_at`
    error: str | None
    noted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything shown, from one snapshot; `more_running` counts the running jobs beyond those read."""

    now: datetime
    database: str
    workers: tuple[str, ...]
    queues: tuple[QueueFigures, ...]
    jobs: tuple[JobFigures, ...]
    more_running: int
    devices: tuple[DeviceFigures, ...]
    edges: tuple[Edge, ...]
    services: tuple[ServiceFigures, ...]


@dataclass
class Figuring:
    """Reads figures repeatedly and remembers what rates need. Raises: StoreError, also if the file was replaced."""

    gq: GPUQueue
    _tokens: dict[tuple[int, int], deque[tuple[datetime, int]]] = field(default_factory=dict)

    def read(self) -> Figures:
        """Read everything as of now."""
        gq = self.gq
        settings, now = in_force(gq.agreed_settings()), gq.now()
        self._expect_same_file()
        with gq.store.snapshot() as reads:
            view = build(reads, settings, now)
            counts = reads.counts()
            running = {
                name: reads.running_attempts(name, limit=JOBS_OF_A_QUEUE)
                for name, queue in view.queues.items()
                if queue.running_count
            }
            first = {
                name: reads.first_waiting(name, largest_bytes=largest_budget(settings))
                for name in view.queues
                if counts.get(name, {}).get(State.AVAILABLE)
            }
            due = {name: _due(reads, name, counts.get(name, {})) for name in view.queues}
            doing = _services(reads, now)
        view = limited(view, gq.plugins)
        holds = known_holds(view, gq.plugins)
        jobs = [self._job(item, view) for attempts in running.values() for item in attempts]
        jobs.sort(key=lambda job: (job.device is None, job.started_at or now, job.id))
        self._forget_all_but(jobs)
        queues, heads = [], []
        for name, queue in view.queues.items():
            head = first.get(name)
            waits_for = _reasons(queue, holds.get(name, ()), head, view, gq, running.get(name, []))
            queues.append(_queue(queue, counts.get(name, {}), waits_for, bool(holds.get(name)), due[name], head))
            if head is not None:
                heads.append(_head(head, queue, waits_for))
        read_count = sum(len(attempts) for attempts in running.values())
        return Figures(
            now=now,
            database=str(gq.database),
            workers=tuple(worker.id for worker in view.workers),
            queues=tuple(queues),
            jobs=(*jobs, *heads),
            more_running=max(0, sum(queue.running_count for queue in view.queues.values()) - read_count),
            devices=tuple(_device(device) for device in view.devices.values()),
            edges=tuple(_edges(view, gq)),
            services=doing,
        )

    def _expect_same_file(self) -> None:
        try:
            self.gq.store.look()
        except FileReplaced:
            raise StoreError(f"{self.gq.database} was deleted or replaced; start `gpuqueue top` again") from None

    def _job(self, item: RunningAttempt, view: View) -> JobFigures:
        elapsed_s = None if item.started_at is None else max(0.0, (view.now - item.started_at).total_seconds())
        return JobFigures(
            id=item.id,
            queue=item.queue,
            task=item.task,
            model=item.model,
            attempt=item.attempt,
            max_attempts=item.max_attempts,
            lease=item.lease,
            started_at=item.started_at,
            worker_id=item.worker_id,
            device=item.device,
            elapsed_s=elapsed_s,
            progress=item.progress,
            note=item.progress_note,
            output_tokens=item.output_tokens,
            tokens_per_s=self._rate(item, view.now),
            left_s=_left_s(item, elapsed_s, view),
            stopping="cancelled" if item.cancel_requested else "makes room" if item.preempt_requested else "",
        )

    def _rate(self, item: RunningAttempt, now: datetime) -> float | None:
        """Return the tokens per second over the last RATE_S seconds; None while unknown."""
        if not item.output_tokens:
            return None
        seen = self._tokens.setdefault((item.id, item.lease), deque())
        seen.append((now, item.output_tokens))
        # Keep one sample from before the period, as its start.
        while len(seen) > 2 and (now - seen[1][0]).total_seconds() >= RATE_S:
            seen.popleft()
        began_at, before = seen[0]
        passed_s = (now - began_at).total_seconds()
        return None if passed_s < SHORTEST_S else max(0.0, (item.output_tokens - before) / passed_s)

    def _forget_all_but(self, jobs: Iterable[JobFigures]) -> None:
        running = {(job.id, job.lease) for job in jobs}
        self._tokens = {key: seen for key, seen in self._tokens.items() if key in running}


def _due(reads: Reads, queue: str, counts: Mapping[str, int]) -> datetime | None:
    later = counts.get(State.SCHEDULED, 0) + counts.get(State.RETRYABLE, 0)
    return reads.next_due(queue) if later and not counts.get(State.AVAILABLE) else None


def _left_s(item: RunningAttempt, elapsed_s: float | None, view: View) -> float | None:
    """Return how much longer a job runs, from its own progress, else from earlier jobs like it."""
    if elapsed_s is None:
        return None
    if item.progress:
        return elapsed_s * (1 - item.progress) / item.progress
    for device in view.devices.values():
        for reservation in device.reservations:
            if reservation.job_id == item.id and reservation.running:
                return left_s(view.estimates, reservation, view.now)
    usual_s = run_s(view.estimates, item.queue, item.task, "")
    return usual_s - elapsed_s if usual_s is not None and usual_s > elapsed_s else None


def _reasons(
    queue: QueueView, holds: Sequence[Hold], head: Job | None, view: View, gq: GPUQueue, running: Sequence[RunningAttempt]
) -> tuple[Hold, ...]:
    """Return why the queue starts nothing now: its holds, else why its first job waits."""
    if holds or head is None or not queue.served:
        return tuple(holds)
    context = QueueContext((), tuple(RunningJob(item.id, item.task, item.started_at) for item in running))
    return explain(head, view, gq.plugins, context, worker_command="").reasons


def _queue(
    queue: QueueView,
    counts: Mapping[str, int],
    waits_for: tuple[Hold, ...],
    is_held: bool,
    due: datetime | None,
    head: Job | None,
) -> QueueFigures:
    waiting = sum(counts.get(state, 0) for state in (State.AVAILABLE, State.SCHEDULED, State.RETRYABLE))
    state: QueueState = "idle"
    if queue.paused is not None:
        state = "paused"
    elif is_held:
        state = "held"
    elif not queue.served:
        state = "no worker"
        waits_for = (Hold("no_worker", "no worker serves it", source="worker"),)
    elif queue.running_count:
        state, waits_for = "running", ()
    elif head is not None:
        state = "waiting"
    elif due is not None:
        waits_for = (Hold("scheduled", "no job is due", due, source="job"),)
    return QueueFigures(
        name=queue.settings.name,
        state=state,
        waiting_count=waiting,
        running_count=queue.running_count,
        completed_count=counts.get(State.COMPLETED, 0),
        discarded_count=counts.get(State.DISCARDED, 0),
        cancelled_count=counts.get(State.CANCELLED, 0),
        holds=waits_for,
        next_job=None if head is None else head.id,
    )


def _head(job: Job, queue: QueueView, waits_for: tuple[Hold, ...]) -> JobFigures:
    return JobFigures(
        id=job.id,
        queue=job.queue,
        task=job.task,
        model=job.expected_model,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        is_running=False,
        waits_for=waits_for if queue.served else (*waits_for, Hold("no_worker", "no worker serves its queue", source="worker")),
    )


def _device(device: DeviceView) -> DeviceFigures:
    reading, settings = device.reading, device.settings
    loaded = {full_name(item.model) for item in device.residents}
    promised = taken_bytes(item for item in device.reservations if not item.model or full_name(item.model) not in loaded)
    resident = sum(item.vram_bytes for item in device.residents)
    used = None
    if reading is not None and reading.lost is None and reading.total_bytes is not None and reading.free_bytes is not None:
        used = max(0, reading.total_bytes - reading.free_bytes)
    return DeviceFigures(
        name=settings.name,
        card=reading.name if reading else None,
        budget_bytes=settings.budget_bytes,
        total_bytes=reading.total_bytes if reading else None,
        used_bytes=used,
        reserved_bytes=device.reserved_bytes,
        resident_bytes=resident,
        promised_bytes=promised,
        others_bytes=None if used is None else max(0, used - resident - promised),
        models=tuple(item.model for item in device.residents),
        models_in_use=tuple(dict.fromkeys(item.model for item in device.reservations if item.running and item.model)),
        cleaning=tuple(item.job_id for item in device.reservations if not item.running),
        temperature_c=reading.temperature_c if reading else None,
        utilisation_percent=reading.utilisation_percent if reading else None,
        read_at=reading.at if reading else None,
        lost=reading.lost if reading else None,
    )


def _edges(view: View, gq: GPUQueue) -> list[Edge]:
    """Return the next edge of each queue's windows, earliest first; none if the windows policy is blocked."""
    if all(name != "windows" for name, _ in gq.plugins.names()):
        return []
    found = [edge for queue in view.queues.values() for edge in _edges_of(queue.settings, view.now)]
    return sorted(found, key=lambda edge: (edge.at, edge.queue))


def _edges_of(queue: QueueSettings, now: datetime) -> Iterable[Edge]:
    if not (queue.pause or queue.windows):
        return
    zone = parse_zone(queue.timezone)
    pauses = tuple(parse_window(text) for text in queue.pause)
    at = next_edge(pauses, zone, now)
    if at is not None:
        yield Edge(queue.name, at, "pause ends" if held_until(pauses, zone, now) else "pause begins")
    for rule in queue.windows:
        window = (parse_window(rule.at),)
        at = next_edge(window, zone, now)
        if at is not None:
            yield Edge(queue.name, at, "limits end" if held_until(window, zone, now) else "limits begin")


def _services(reads: Reads, now: datetime) -> tuple[ServiceFigures, ...]:
    return tuple(
        ServiceFigures(
            item.name, item.worker_id, _number(item.status.get("lag_s")), _text(item.status.get("error")), item.noted_at
        )
        for item in reads.services(now_us=to_us(now))
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return None if value in (None, "") else str(value)
