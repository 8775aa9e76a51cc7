"""Uses every public name as an application would; a test checks these types against the installed package."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, assert_type

import click
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

import gpuqueue
from gpuqueue import (
    Cancellation,
    Config,
    ConfigurationError,
    CurrentJob,
    Discard,
    Entry,
    Event,
    Explanation,
    Follower,
    ForkedWithOpenFile,
    GPUQueue,
    GPUQueueError,
    Hold,
    Job,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    JobHandle,
    LogLine,
    PayloadError,
    PluginFailed,
    Rate,
    Reader,
    Record,
    Retry,
    ServiceInfo,
    ServiceUnavailable,
    Snooze,
    State,
    StateError,
    StoreBusy,
    StoreError,
    Task,
    UnknownJob,
    UnknownQueue,
    UnknownTask,
    UsageError,
    WindowRule,
    Worker,
    WorkerInfo,
    WouldDeadlock,
    backoff,
    current_job,
    hookimpl,
)
from gpuqueue.client.handle import Piece
from gpuqueue.contract.hookspecs import (
    AttemptFailedDetails,
    JobDemandDetails,
    OrderCandidatesDetails,
    PlaceJobDetails,
    QueueHoldDetails,
    RetentionDetails,
)
from gpuqueue.domain.answers import Demand, Placement, Wait
from gpuqueue.domain.explanation import Expectation
from gpuqueue.domain.job import JobErrorRecord, Lease
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.plugins import (
    AttemptContext,
    Device,
    Executor,
    Reading,
    RegisterCommandsDetails,
    RegisterDevicesDetails,
    RegisterExecutorsDetails,
)
from gpuqueue.testing import (
    JobsStuck,
    assert_enqueued,
    assert_not_enqueued,
    eager,
    enqueued,
    run_until_idle,
    travel,
)
from gpuqueue.testing.devices import DeviceSuite

assert_type(gpuqueue.__version__, str)

# --- the queue object ---

gq = GPUQueue("application.db")
configured = GPUQueue.from_config(Path("gpuqueue.toml"), database="other.db")
loaded = GPUQueue(config=Config.load("gpuqueue.toml"), discover_plugins=False)
with GPUQueue() as opened:
    assert_type(opened, GPUQueue)
assert_type(gq.config, Config)
assert_type(gq.database, Path)
assert_type(
    gq.queue("mail", concurrency=2, pause=("mon-fri 09:00-18:00",), timezone="Europe/Paris", when_unavailable="retry"),
    QueueSettings,
)
gq.queue("reports", rate=Rate(10, per_s=60), windows=(WindowRule("18:00-09:00", concurrency=1),), overrun="dont_start")

# --- tasks ---


@gq.task
def add(a: int, b: int = 2) -> int:
    return a + b


@gq.task(queue="mail", max_attempts=5, backoff=backoff.exponential("10s", cap="30m"), retry_on=ConnectionError)
def remind(rfa_id: int, *, to: Sequence[str] = ()) -> str:
    if not to:
        raise Discard("nobody to remind", code="nobody")
    if rfa_id == 0:
        raise Retry(after="5m", reason="not yet")
    if rfa_id < 0:
        raise Snooze(until=datetime.now(UTC) + timedelta(hours=1), reason="still closed")
    return f"reminded {rfa_id}"


@gq.task(name="fetch", timeout="30s", discard_on=(KeyError, ValueError), backoff=lambda attempt: attempt * 10)
async def fetch(url: str) -> dict[str, int]:
    current_job().check()
    return {url: 200}


@gq.task(isolate=True, backoff="polynomial", tags=["nightly"])
def train(epochs: int) -> None:
    job = current_job()
    assert_type(job, CurrentJob)
    assert_type(job.id, int)
    assert_type(job.attempt, int)
    assert_type(job.max_attempts, int)
    assert_type(job.deadline, datetime | None)
    for epoch in range(epochs):
        if job.cancelled:
            return
        job.progress(epoch / epochs, note=f"epoch {epoch}")
        job.log(f"epoch {epoch}")
        job.emit(".")


assert_type(add(1, b=3), int)
assert_type(add.name, str)


async def call_it_here() -> None:
    calling: Coroutine[Any, Any, dict[str, int]] = fetch("http://127.0.0.1")
    assert_type(await calling, dict[str, int])
    assert_type(await fetch("http://127.0.0.1"), dict[str, int])


def with_any_task(task: Task[..., Any]) -> JobHandle:
    return task.enqueue(whatever="it takes")


with_any_task(add)
with_any_task(fetch)
rules: list[backoff.Backoff] = [
    backoff.exponential(timedelta(seconds=1), factor=3, jitter=0),
    backoff.polynomial("1s", power=3),
    backoff.fixed(5),
    backoff.custom(lambda attempt: f"{attempt}m", cap="1h"),
]

# --- enqueueing ---

assert_type(add.enqueue(a=1), JobHandle)
assert_type(fetch.enqueue(url="http://127.0.0.1"), JobHandle)
remind.using(delay="5m", priority=5, tags=("late",)).enqueue(rfa_id=8, to=["someone"])
remind.using(at=datetime.now(UTC), expires_in=timedelta(days=1), queue="mail", max_attempts=1, timeout=30).enqueue(rfa_id=9)
gq.enqueue("fetch", {"url": "http://127.0.0.1"}, priority=1)
assert_type(
    gq.enqueue_many([(add, {"a": 1}), ("fetch", {"url": "x"}), {"task": "fetch", "arguments": {"url": "x"}, "priority": 3}]),
    list[JobHandle],
)


def beside_other_rows(session: Session, connection: Connection) -> None:
    remind.using(connection=session).enqueue(rfa_id=1)
    gq.enqueue_many([(remind, {"rfa_id": 2})], connection=connection)


async def beside_other_rows_async(session: AsyncSession) -> None:
    assert_type(await remind.using(connection=session).aenqueue(rfa_id=1), JobHandle)


# --- Ollama ---

revision = gq.ollama.generate(
    "gemma4:e4b", prompt="Revise: teh cat", queue="ai-realtime", system="Be short", options={"num_predict": 100}, think=False
)
assert_type(revision, JobHandle)
gq.ollama.chat("gemma4:e4b", messages=[{"role": "user", "content": "Hello"}], queue="ai-realtime", job={"priority": 3})
gq.ollama.embed(
    "nomic-embed-text", input=["one", "two"], queue="ai-batch", dimensions=256, job={"timeout": "5m", "fallback": ["all-minilm"]}
)

# --- jobs ---


def follow(job: JobHandle) -> str:
    assert_type(job.id, int)
    assert_type(job.state, State)
    assert_type(job.queue, str)
    assert_type(job.task, str)
    assert_type(job.attempt, int)
    assert_type(job.progress, float | None)
    assert_type(job.error, JobErrorRecord | None)
    assert_type(job.enqueued_at, datetime)
    assert_type(job.started_at, datetime | None)
    assert_type(job.finished_at, datetime | None)
    assert_type(job.record, Job)
    assert_type(job.record.arguments, Mapping[str, Any])
    assert_type(job.stream(timeout_s=60), Iterator[Piece])
    assert_type(job.watch(), Iterator[Job])
    assert_type(job.follow_logs(after=3), Iterator[LogLine])
    assert_type(job.logs(after=3), list[LogLine])
    assert_type(job.cancel(), bool)
    assert_type(job.retry(), JobHandle)
    assert_type(job.refresh().explain(), Explanation)
    try:
        text: str = job.result(timeout_s=30)["text"]
    except (JobFailed, JobCancelled, JobExpired, ServiceUnavailable) as error:
        assert_type(error.job_id, int)
        return error.code
    except ForkedWithOpenFile as error:
        return error.reason
    except (StoreBusy, StoreError, TimeoutError):
        return "try again"
    return text


async def follow_async(job: JobHandle) -> None:
    assert_type(await job.arefresh(), JobHandle)
    assert_type(await job.alogs(after=3), list[LogLine])
    assert_type(await job.acancel(), bool)
    assert_type(await job.aretry(), JobHandle)
    assert_type(await job.aexplain(), Explanation)
    assert_type(job.astream(), AsyncIterator[Piece])
    assert_type(job.awatch(), AsyncIterator[Job])
    assert_type(job.afollow_logs(), AsyncIterator[LogLine])
    async for piece in job.astream(timeout_s=60):
        assert_type(piece.attempt_lease, int)
        print(piece.upper(), end="")
    result: dict[str, Any] = await job.aresult(timeout_s=30)
    print(result["text"])


# --- finding and controlling ---


def control() -> None:
    assert_type(gq.job(3), JobHandle)
    assert_type(gq.jobs(queue="mail", state=State.RUNNING, limit=10, after=100), list[JobHandle])
    assert_type(gq.jobs(state="running"), list[JobHandle])
    gq.pause("mail", reason="maintenance", until="30m", by="an operator")
    gq.pause("mail", until=datetime.now(UTC))
    assert_type(gq.resume("mail"), bool)
    assert_type(gq.retry_failed("mail"), int)
    assert_type(gq.cancel_all("mail"), Cancellation)
    assert_type(gq.counts(), dict[str, dict[str, int]])
    assert_type(gq.holds(), dict[str, list[Hold]])
    assert_type(gq.explain(3).reasons, tuple[Hold, ...])
    assert_type(gq.expected_ends(), dict[str, datetime])
    assert_type(gq.expectations(), dict[str, Expectation])
    assert_type(gq.workers(), list[WorkerInfo])
    assert_type(gq.services(), list[ServiceInfo])
    assert_type(gq.plugin("windows"), object)
    assert_type(gq.tasks, Mapping[str, Task[..., Any]])
    gq.close()


def copy() -> None:
    follower = gq.follow("copy")
    assert_type(follower, Follower)
    assert_type(follower.is_new, bool)
    events: list[Event] = follower.read(limit=100)
    with gq.read() as reader:
        assert_type(reader, Reader)
        assert_type(reader.last_event_id, int)
        entries = reader.entries("mail", State.COMPLETED, "discarded", limit=10, newest_first=True)
        assert_type(entries, list[Entry])
        assert_type(reader.records(entry.id for entry in entries), dict[int, Record])
        assert_type(reader.finished_by_minute("mail", "completed", since=datetime.now(UTC)), dict[datetime, int])
    follower.advance(events[-1].id)
    assert_type(follower.position, int)
    follower.forget()


async def control_async() -> None:
    assert_type(await add.aenqueue(a=1), JobHandle)
    assert_type(await fetch.using(priority=1).aenqueue(url="x"), JobHandle)
    assert_type(await gq.aenqueue("fetch", {"url": "x"}, delay="1m"), JobHandle)
    assert_type(await gq.aenqueue_many([(add, {"a": 1})]), list[JobHandle])
    assert_type(await gq.ollama.agenerate("gemma4:e4b", prompt="Hello", queue="ai-realtime", raw=True), JobHandle)
    assert_type(await gq.ollama.achat("gemma4:e4b", messages=[], queue="ai-realtime", tools=[]), JobHandle)
    assert_type(await gq.ollama.aembed("nomic-embed-text", input="one", queue="ai-batch"), JobHandle)
    assert_type(await gq.ajob(3), JobHandle)
    assert_type(await gq.ajobs(queue="mail", limit=10), list[JobHandle])
    await gq.apause("mail", reason="maintenance")
    assert_type(await gq.aresume("mail"), bool)
    assert_type(await gq.aretry_failed(), int)
    assert_type(await gq.acancel_all("mail"), Cancellation)
    assert_type(await gq.acounts(), dict[str, dict[str, int]])
    assert_type(await gq.aholds(), dict[str, list[Hold]])
    assert_type(await gq.aexplain(3), Explanation)
    assert_type(await gq.aexpected_ends(), dict[str, datetime])
    assert_type(await gq.aexpectations(), dict[str, Expectation])
    assert_type(await gq.aworkers(), list[WorkerInfo])
    assert_type(await gq.aservices(), list[ServiceInfo])


# --- errors ---


def answer(error: GPUQueueError) -> int:
    if isinstance(error, UnknownJob | UnknownQueue | UnknownTask):
        return 404
    if isinstance(error, StateError):
        return 409
    if isinstance(error, PayloadError | ConfigurationError | UsageError):
        return 400
    if isinstance(error, WouldDeadlock):
        assert_type((error.job_id, error.awaited_id), tuple[int, int])
    if isinstance(error, PluginFailed):
        assert_type((error.plugin, error.hook), tuple[str, str])
        return 500
    return 503 if isinstance(error, StoreError) else 500 if isinstance(error, JobError) else 501


# --- workers ---


def work() -> None:
    with Worker(gq) as running:
        assert_type(running, Worker)
    worker = Worker(gq, queues=["mail"], threads=4, burst=True, accept_config=True)
    assert_type(worker.start(), Worker)
    worker.request_stop()
    worker.stop(grace_s=5.0)
    sys.exit(worker.run())  # type: ignore[func-returns-value]  # what runs until it is stopped returns nothing


# --- tests of an application ---


def test() -> None:
    with eager(gq, raises=True):
        assert_type(add.enqueue(a=1), JobHandle)
    assert_type(assert_enqueued(add, a=1), JobHandle)
    assert_type(assert_enqueued("add", gq, task="x", gq=1), JobHandle)
    assert_type(enqueued(add.using(queue="mail", delay="5m"), a=1), list[JobHandle])
    assert_not_enqueued(add.using(priority=7))
    with travel(gq, "2h"), travel(gq, timedelta(hours=1)), travel(gq, datetime(2031, 1, 1, tzinfo=UTC)), travel(gq, 90):
        assert_type(run_until_idle(gq, may_wait=True), dict[int, Explanation])
    try:
        run_until_idle(gq)
    except JobsStuck as stuck:
        assert_type(stuck.explanations, dict[int, Explanation])


class Still:
    def read(self) -> Reading:
        return Reading(at=datetime.now(UTC), name="a still card")


class Cards:
    @hookimpl
    def register_devices(self, details: RegisterDevicesDetails) -> Mapping[str, Device]:
        return {device.name: Still() for device in details.devices}


class TestStill(DeviceSuite):
    reads_memory = False

    def make_plugin(self) -> object:
        return Cards()


# --- plugins ---


class Echo:
    def run(self, context: AttemptContext) -> object:
        assert_type(context.lease, Lease)
        context.emit("echo")
        return dict(context.lease.arguments)


class Plugin:
    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        for name, device in details.view.devices.items():
            if details.queue.gpu and device.reading and (device.reading.temperature_c or 0) > 80:
                return Hold("hot", f"{name} is hot", until=details.view.now + timedelta(minutes=1))
        return None

    @hookimpl
    def job_demand(self, details: JobDemandDetails) -> Demand | None:
        return Demand(2_000_000_000, model="whisper") if details.job.task == "transcribe" else None

    @hookimpl
    def place_job(self, details: PlaceJobDetails) -> Placement | Wait | None:
        return Wait("never", "this card is for games") if details.demand.vram_bytes else Placement("gpu0", 0)

    @hookimpl
    def order_candidates(self, details: OrderCandidatesDetails) -> Sequence[Job]:
        return sorted(details.candidates, key=lambda job: job.enqueued_at)

    @hookimpl
    def attempt_failed(self, details: AttemptFailedDetails) -> Retry | Snooze | Discard | None:
        return Retry(after=10 * details.lease.attempt) if isinstance(details.error, OSError) else None

    @hookimpl
    def retention(self, details: RetentionDetails) -> Mapping[State, float | None]:
        return {**details.configured, State.COMPLETED: 60.0}

    @hookimpl
    def job_finished(self, details: Event) -> None:
        print(details.name, details.job_id, details.queue, details.data["state"], details.at.isoformat())

    @hookimpl
    def register_executors(self, details: RegisterExecutorsDetails) -> Mapping[str, Executor]:
        return {"echo": Echo()}

    @hookimpl
    def register_commands(self, details: RegisterCommandsDetails) -> None:
        details.cli.add_command(click.Command("hello", callback=lambda: print("hello")))


extended = GPUQueue("application.db", plugins=[Plugin()])
