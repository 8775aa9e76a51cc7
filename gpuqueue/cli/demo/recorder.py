"""Records a run while it runs: every transition, replayed in the order of its transactions, and samples.

It changes nothing in the queue, except that it follows its events.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType

from gpuqueue.cli.demo.stage import Stage
from gpuqueue.decisions.evaluation import known_holds
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.device import Reading
from gpuqueue.domain.errors import ExecutionError
from gpuqueue.domain.job import Event, State
from gpuqueue.domain.units import format_duration
from gpuqueue.domain.view import View
from gpuqueue.executors.ollama_client import OllamaClient

FOLLOWER = "demo"
EVENTS_AT_ONCE = 200
LOOK_EVERY_S = 0.1
REALTIME, BATCH, REMINDERS, DISTRIBUTION = "ai-realtime", "ai-batch", "rfa-reminders", "rfa-distribution"
QUEUES = (REALTIME, BATCH, REMINDERS, DISTRIBUTION)


@dataclass(slots=True)
class JobRecord:
    """One job as its events describe it; `postponed_count` counts attempts that were returned unspent or retried later."""

    id: int
    queue: str
    enqueued_at: datetime
    state: str = "available"
    started_at: datetime | None = None  # of its first attempt
    last_started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    postponed_count: int = 0

    @property
    def wait_s(self) -> float | None:
        return None if self.started_at is None else (self.started_at - self.enqueued_at).total_seconds()

    @property
    def has_ended(self) -> bool:
        return self.finished_at is not None


@dataclass(slots=True)
class Replay:
    """What the transitions add up to. Events are numbered inside their transactions, so their order is the real one."""

    jobs: dict[int, JobRecord] = field(default_factory=dict)
    running: dict[int, str | None] = field(default_factory=dict)  # job: its device
    most_running: Counter[str] = field(default_factory=Counter)
    gpu_overlap_count: int = 0
    batch_beside_realtime_count: int = 0
    rfa_on_gpu_count: int = 0
    hold_counts: Counter[str] = field(default_factory=Counter)  # of ai-batch: periods by reason
    held: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def take(self, event: Event) -> str | None:
        """Add one event; returns the line that describes it, or None if it is not shown."""
        if event.name in ("queue_held", "queue_released"):
            return self._held(event)
        if event.name == "backend_lost":
            return "Ollama is unavailable: ai-realtime refuses jobs, ai-batch waits"
        if event.name == "backend_recovered":
            return "Ollama is available again"
        if event.name == "job_enqueued" and event.job_id is not None:
            self.jobs[event.job_id] = JobRecord(event.job_id, event.queue or "", event.at)
            return None
        job = self.jobs.get(event.job_id or 0)
        if job is None:
            return None
        job.state = str(event.data.get("state", job.state))
        if event.name == "attempt_started":
            return self._started(job, event)
        if event.name in ("attempt_finished", "job_finished"):
            return self._ended(job, event)
        return None

    def of(self, *queue_names: str) -> list[JobRecord]:
        return [job for job in self.jobs.values() if job.queue in queue_names]

    def count(self, queue: str, *states: State) -> int:
        return sum(job.state in states for job in self.jobs.values() if job.queue == queue)

    def _started(self, job: JobRecord, event: Event) -> str | None:
        device = event.data.get("device")
        if job.queue == BATCH and any(not other.has_ended for other in self.of(REALTIME)):
            self.batch_beside_realtime_count += 1
        if device is not None:
            self.gpu_overlap_count += sum(other is not None for other in self.running.values())
            self.rfa_on_gpu_count += job.queue not in (REALTIME, BATCH)
        self.running[job.id] = device
        running_count = sum(self.jobs[job_id].queue == job.queue for job_id in self.running)
        self.most_running[job.queue] = max(self.most_running[job.queue], running_count)
        job.attempt = int(event.data.get("attempt", 0))
        job.last_started_at = event.at
        if job.started_at is None:
            job.started_at = event.at
        if job.queue != REALTIME:
            return None
        return f"{job.queue} #{job.id} started after {format_duration(job.wait_s or 0.0)}"

    def _ended(self, job: JobRecord, event: Event) -> str:
        self.running.pop(job.id, None)
        name = f"{job.queue} #{job.id}"
        if event.name == "attempt_finished":
            job.postponed_count += 1
            is_spent = int(event.data.get("attempt", 0)) >= job.attempt
            return f"{name} was interrupted and postponed, {'one' if is_spent else 'no'} attempt spent"
        job.finished_at = event.at
        if job.state == State.COMPLETED and job.last_started_at is not None:
            return f"{name} completed in {format_duration((event.at - job.last_started_at).total_seconds())}"
        took = format_duration((event.at - job.enqueued_at).total_seconds())
        return f"{name} was refused after {took}" if job.queue == REALTIME else f"{name} {job.state} after {took}"

    def _held(self, event: Event) -> str | None:
        queue = event.queue or ""
        before, now = self.held.get(queue, ()), tuple(event.data.get("reasons", ()))
        self.held[queue] = now
        if queue != BATCH:
            return None
        began = [reason for reason in now if reason not in before]
        self.hold_counts.update(began)
        if not now:
            return f"{queue} is no longer held"
        details = [text for reason, text in zip(now, event.data.get("details", ()), strict=False) if reason in began]
        return f"{queue} is held: {'; '.join(details)}" if began else None


@dataclass(frozen=True, slots=True)
class Sample:
    """A snapshot of the queue, for drawing."""

    view: View
    counts: Mapping[str, Mapping[str, int]]
    holds: Mapping[str, tuple[Hold, ...]]
    used_bytes: int
    residents: tuple[str, ...]


@dataclass(slots=True)
class Watched:
    """What sampling the devices found."""

    reading_count: int = 0
    last_reading_at: datetime | None = None
    reserved_peak_bytes: int = 0
    loaded_peak_bytes: int = 0  # of a real Ollama, by its own figures
    load_count: int = 0
    loaded: frozenset[str] = frozenset()
    model_peak_count: int = 0

    def read(self, reading: Reading | None, reserved_bytes: int) -> None:
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, reserved_bytes)
        if reading is not None and reading.free_bytes is not None and reading.at != self.last_reading_at:
            self.reading_count += 1
            self.last_reading_at = reading.at

    def seen_loaded(self, models: Mapping[str, int]) -> None:
        self.loaded_peak_bytes = max(self.loaded_peak_bytes, sum(models.values()))
        self.load_count += len(models.keys() - self.loaded)
        self.loaded = frozenset(models)
        self.model_peak_count = max(self.model_peak_count, len(models))


class Recorder:
    """Reads the queue ten times a second in its own thread, which calls `on_line` and `on_sample`."""

    def __init__(
        self,
        stage: Stage,
        *,
        deadline_s: float,
        on_line: Callable[[datetime, str], None],
        on_sample: Callable[[Sample], None],
    ) -> None:
        self.replay = Replay()
        self.watched = Watched()
        self._stage = stage
        self._deadline_s = deadline_s
        self._on_line = on_line
        self._on_sample = on_sample
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._ollama = OllamaClient(stage.backend)
        self._thread = threading.Thread(target=self._run, name="demo-recorder", daemon=True)

    def __enter__(self) -> Recorder:
        self._stage.gq.store.followers.add(FOLLOWER)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if error is None and self._failure is None:
            self._look()  # what happened since the last reading

    @property
    def left_s(self) -> float:
        """Seconds until the whole demo must have ended. Raises: DemoFailed if none are left or the worker is gone."""
        self._stage.check_worker()
        if self._failure is not None:
            raise self._stage.failed(f"cannot watch the queue: {self._failure}")
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise self._stage.failed("the demo took too long and was stopped")
        return left_s

    def until(self, true: Callable[[Replay], bool], what: str) -> None:
        """Wait until `true` holds for what was seen. Raises: DemoFailed naming `what` when time runs out."""
        with self._changed:
            while not true(self.replay):
                try:
                    left_s = self.left_s
                except Exception as error:
                    error.add_note(f"it was waiting for: {what}")
                    raise
                self._changed.wait(min(left_s, 0.5))

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except Exception as error:
                self._failure = error
                return
            self._stop.wait(LOOK_EVERY_S)

    def _look(self) -> None:
        gq = self._stage.gq
        for event in gq.store.followers.take(FOLLOWER, limit=EVENTS_AT_ONCE):
            with self._changed:
                line = self.replay.take(event)
                self._changed.notify_all()
            if line is not None:
                self._on_line(event.at, line)
        view = gq.view()
        device = view.devices[self._stage.device.name]
        self.watched.read(device.reading, device.reserved_bytes)
        with gq.store.reading() as reads:
            counts = reads.counts()
        loaded = self._loaded()
        self.watched.seen_loaded(loaded)
        sample = Sample(view, counts, known_holds(view, gq.plugins), self._used_bytes(device.reading, loaded), tuple(loaded))
        self._on_sample(sample)

    def _loaded(self) -> dict[str, int]:
        try:
            residents = self._ollama.residents(timeout_s=1.0)
        except ExecutionError:
            return {}  # it is unavailable, or too busy to answer
        return {resident.model: resident.vram_bytes for resident in residents}

    def _used_bytes(self, reading: Reading | None, loaded: Mapping[str, int]) -> int:
        if self._stage.simulator is not None:
            return self._stage.simulator.card.used_bytes
        if reading is not None and reading.total_bytes is not None and reading.free_bytes is not None:
            return reading.total_bytes - reading.free_bytes
        return sum(loaded.values())
