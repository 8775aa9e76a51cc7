"""What `top` shows, as figures: the state of each queue, rates, what is left, cards, windows and services."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine

from gpuqueue import GPUQueue
from gpuqueue.cli.top_figures import DeviceFigures, Figures, Figuring, JobFigures, QueueFigures
from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.estimates import OUTPUT_RATE, RUN, Observation, model_key, work_key
from gpuqueue.domain.units import to_us
from gpuqueue.domain.view import Pause
from gpuqueue.store.sqlite import estimates

TOML = """
[gpu]
budget = "5GB"
margin = "3GB"

[queues.ai]
gpu = true
concurrency = 1

[queues.mail]

[queues.nightly]
pause = ["09:00-18:00"]
timezone = "UTC"
windows = [{ at = "20:00-22:00", concurrency = 1 }]
"""
GB = 10**9
NOON = "2026-07-01T12:00:00+00:00"
MakeQueue = Callable[..., GPUQueue]


@pytest.fixture
def gq(make_queue: MakeQueue) -> GPUQueue:
    gq = make_queue(TOML)
    gq.task(name="app.send", queue="mail")(lambda: None)
    gq.task(name="app.draw", queue="ai")(lambda: None)
    return gq


def serve(gq: GPUQueue) -> None:
    """Let a worker be there that does nothing."""
    gq.store.workers.register(
        "w",
        host="here",
        pid=1,
        runtime_dir="/nowhere",
        queues=None,
        digest="d",
        expires_at_us=gq.now_us() + 10**9,
        now_us=gq.now_us(),
    )


def run(gq: GPUQueue, job_id: int, *, for_s: float = 10, **columns: Any) -> None:
    """Let a job run since then, as its row says."""
    values = {"state": "running", "worker_id": "w", "lease": 1, "attempt": 1, "started_at": gq.now_us() - int(for_s * 1e6)}
    values |= columns
    names = ", ".join(f"{name} = ?" for name in values)
    gq.store.engine.writer.run(
        lambda connection: connection.execute(f"UPDATE jobs SET {names} WHERE id = ?", (*values.values(), job_id))
    )


def learn(gq: GPUQueue, *observations: Observation) -> None:
    gq.store.engine.writer.run(lambda connection: estimates.learn(connection, observations, now_us=gq.now_us()))


def publish(gq: GPUQueue, *, reading: dict[str, Any] | None, residents: list[dict[str, Any]] | None = None) -> None:
    """Let a card be seen as a worker publishes it."""
    said = None if reading is None else json.dumps({"at": to_us(gq.now()), **reading})
    gq.store.engine.writer.run(
        lambda connection: connection.execute(
            "INSERT OR REPLACE INTO devices (name, reading, residents) VALUES ('gpu0', ?, ?)", (said, json.dumps(residents or []))
        )
    )


def queue_of(figures: Figures, name: str) -> QueueFigures:
    return next(queue for queue in figures.queues if queue.name == name)


def job_of(figures: Figures, job_id: int) -> JobFigures:
    return next(job for job in figures.jobs if job.id == job_id)


def card(gq: GPUQueue) -> DeviceFigures:
    (device,) = Figuring(gq).read().devices
    return device


# --- queues ---


def test_a_queue_without_work_is_idle_and_one_without_a_worker_says_so(gq: GPUQueue) -> None:
    assert queue_of(Figuring(gq).read(), "mail").state == "no worker"
    serve(gq)
    assert queue_of(Figuring(gq).read(), "mail").state == "idle"


def test_a_pause_comes_before_everything_else_that_holds_a_queue(gq: GPUQueue) -> None:
    with time_machine.travel(NOON, tick=False):
        assert queue_of(Figuring(gq).read(), "nightly").state == "held"
        gq.store.queues.pause("nightly", Pause("ana", "moves", gq.now(), gq.now() + timedelta(hours=1)))
        queue = queue_of(Figuring(gq).read(), "nightly")
    assert queue.state == "paused"
    assert [hold.reason for hold in queue.holds] == ["paused", "window"]


def test_a_queue_runs_waits_or_has_nothing_due(gq: GPUQueue) -> None:
    serve(gq)
    gq.enqueue("app.send", delay="5m")
    queue = queue_of(Figuring(gq).read(), "mail")
    assert (queue.state, queue.waiting_count) == ("idle", 1)
    assert queue.holds[0].until is not None
    job = gq.enqueue("app.send")
    queue = queue_of(Figuring(gq).read(), "mail")
    assert (queue.state, queue.waiting_count, queue.holds) == ("waiting", 2, ())
    run(gq, job.id)
    assert queue_of(Figuring(gq).read(), "mail").state == "running"


def test_the_first_job_of_a_queue_says_what_it_waits_for(gq: GPUQueue) -> None:
    serve(gq)
    first, second, third = (gq.enqueue("app.draw") for _ in range(3))
    run(gq, first.id, device="gpu0", reserved_bytes=GB)
    figures = Figuring(gq).read()
    job = job_of(figures, second.id)
    assert not job.is_running
    assert {"concurrency", "device_busy"} <= {hold.reason for hold in job.waits_for}
    assert f"(job {first.id})" in job.waits_for[0].detail
    assert queue_of(figures, "ai").state == "running"
    assert all(job.id != third.id for job in figures.jobs)


def test_finished_jobs_are_counted_by_how_they_ended(gq: GPUQueue) -> None:
    gq.enqueue("app.send").cancel()
    gq.store.engine.writer.run(
        lambda connection: connection.executemany(
            "INSERT INTO counters VALUES ('mail', ?, ?)", [("completed", 7), ("discarded", 2)]
        )
    )
    queue = queue_of(Figuring(gq).read(), "mail")
    assert (queue.completed_count, queue.discarded_count, queue.cancelled_count) == (7, 2, 1)


# --- jobs ---


@pytest.mark.parametrize(("progress", "left_s"), [(0.25, 30.0), (1.0, 0.0)])
def test_what_is_left_follows_from_how_far_a_job_says_it_is(gq: GPUQueue, progress: float, left_s: float) -> None:
    with time_machine.travel(NOON, tick=False):
        job = gq.enqueue("app.send")
        run(gq, job.id, for_s=10, progress=progress, progress_note="Ben")
        found = job_of(Figuring(gq).read(), job.id)
    assert (found.elapsed_s, found.left_s, found.note) == (10.0, left_s, "Ben")


def test_what_is_left_follows_else_from_jobs_like_it(gq: GPUQueue) -> None:
    with time_machine.travel(NOON, tick=False):
        job = gq.enqueue("app.send")
        run(gq, job.id, for_s=10, progress=0.0)
        assert job_of(Figuring(gq).read(), job.id).left_s is None
        learn(gq, Observation(RUN, work_key("mail", "app.send", ""), 25.0))
        assert job_of(Figuring(gq).read(), job.id).left_s == 15.0
        run(gq, job.id, for_s=40)
        assert job_of(Figuring(gq).read(), job.id).left_s is None  # it has taken longer than any before


def test_what_is_left_of_an_answer_follows_from_its_tokens(gq: GPUQueue) -> None:
    learn(gq, Observation(OUTPUT_RATE, model_key("gemma"), 20.0))
    job = gq.ollama.generate("gemma", prompt="x", queue="ai", options={"num_predict": 100})
    run(gq, job.id, device="gpu0", reserved_bytes=GB, demand_model="gemma", output_tokens=40)
    assert job_of(Figuring(gq).read(), job.id).left_s == 3.0


def test_the_rate_is_what_was_written_between_two_looks(gq: GPUQueue) -> None:
    figuring = Figuring(gq)
    with time_machine.travel(NOON, tick=False) as clock:
        job = gq.ollama.generate("gemma", prompt="x", queue="ai")
        run(gq, job.id, output_tokens=0)
        assert job_of(figuring.read(), job.id).tokens_per_s is None  # the model is still loaded
        clock.shift(5)
        run(gq, job.id, output_tokens=10)
        assert job_of(figuring.read(), job.id).tokens_per_s is None
        clock.shift(1)
        run(gq, job.id, output_tokens=40)
        assert job_of(figuring.read(), job.id).tokens_per_s == 30.0
        for _ in range(10):  # it says nothing any more
            clock.shift(1)
            found = job_of(figuring.read(), job.id)
        assert found.tokens_per_s == 0.0
        run(gq, job.id, output_tokens=5, lease=2)  # another attempt
        assert job_of(figuring.read(), job.id).tokens_per_s is None


def test_jobs_on_a_card_come_first_and_those_that_are_not_read_are_counted(gq: GPUQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuqueue.cli.top_figures.JOBS_OF_A_QUEUE", 2)
    for number in range(3):
        run(gq, gq.enqueue("app.send").id, for_s=100 + number)
    drawn = gq.enqueue("app.draw")
    run(gq, drawn.id, device="gpu0", reserved_bytes=GB)
    figures = Figuring(gq).read()
    assert [job.queue for job in figures.jobs] == ["ai", "mail", "mail"]
    assert figures.more_running == 1


def test_a_job_that_is_asked_to_stop_says_by_whom(gq: GPUQueue) -> None:
    job = gq.enqueue("app.draw")
    run(gq, job.id)
    job.cancel()
    assert job_of(Figuring(gq).read(), job.id).stopping == "cancelled"
    run(gq, job.id, cancel_requested=0, preempt_lease=1)
    assert job_of(Figuring(gq).read(), job.id).stopping == "makes room"


# --- cards ---


def test_what_others_hold_is_what_is_neither_loaded_nor_promised(gq: GPUQueue) -> None:
    publish(
        gq,
        reading={"total_bytes": 8 * GB, "free_bytes": GB, "temperature_c": 60, "utilisation_percent": 97},
        residents=[{"model": "gemma:latest", "size_bytes": 4 * GB, "vram_bytes": 4 * GB}],
    )
    assert card(gq).others_bytes == 3 * GB
    run(gq, gq.enqueue("app.draw").id, device="gpu0", reserved_bytes=GB)
    found = card(gq)
    assert (found.used_bytes, found.resident_bytes, found.promised_bytes, found.others_bytes) == (7 * GB, 4 * GB, GB, 2 * GB)
    # Memory that is reserved for a model that is loaded is not counted twice.
    asked = gq.ollama.generate("gemma", prompt="x", queue="ai")
    run(gq, asked.id, device="gpu0", reserved_bytes=4 * GB, demand_model="gemma")
    found = card(gq)
    assert (found.reserved_bytes, found.promised_bytes, found.others_bytes) == (5 * GB, GB, 2 * GB)
    assert found.temperature_c == 60


def test_a_card_without_a_driver_is_unknown_and_not_empty(gq: GPUQueue) -> None:
    assert card(gq).read_at is None
    publish(gq, reading={})
    found = card(gq)
    assert (found.used_bytes, found.others_bytes, found.total_bytes) == (None, None, None)
    publish(gq, reading={"lost": "it fell off the bus"})
    assert card(gq).lost == "it fell off the bus"


def test_an_ended_job_whose_memory_is_not_back_is_told(gq: GPUQueue) -> None:
    job = gq.enqueue("app.draw")
    run(gq, job.id, device="gpu0", reserved_bytes=GB, state="completed", finished_at=gq.now_us())
    assert card(gq).cleaning == (job.id,)


# --- windows and services ---


@pytest.mark.parametrize(
    ("at", "edges"),
    [
        ("2026-07-01T08:00:00+00:00", [(9, "pause begins"), (20, "limits begin")]),
        ("2026-07-01T12:00:00+00:00", [(18, "pause ends"), (20, "limits begin")]),
        ("2026-07-01T21:00:00+00:00", [(22, "limits end"), (9, "pause begins")]),
    ],
)
def test_the_next_edge_of_each_window_is_told_the_earliest_first(gq: GPUQueue, at: str, edges: list[tuple[int, str]]) -> None:
    with time_machine.travel(at, tick=False):
        found = Figuring(gq).read().edges
    assert [(edge.at.hour, edge.change) for edge in found] == edges


def test_without_the_policy_of_windows_there_are_no_edges(make_queue: MakeQueue) -> None:
    gq = make_queue(f'{TOML}\n[plugins]\nblock = ["windows"]\n')
    assert Figuring(gq).read().edges == ()


def test_a_service_says_how_far_it_lags_behind(gq: GPUQueue) -> None:
    assert Figuring(gq).read().services == ()
    serve(gq)
    now_us = gq.now_us()
    term = gq.store.services.take("mirror", "w", expires_at_us=now_us + 10**9, now_us=now_us)
    gq.store.services.note("mirror", term, {"lag_s": 1.5, "else": 3}, now_us=now_us)
    (service,) = Figuring(gq).read().services
    assert (service.name, service.worker_id, service.lag_s, service.error) == ("mirror", "w", 1.5, None)
    gq.store.services.note("mirror", term, {"lag_s": "soon", "error": "no Redis"}, now_us=now_us)
    (service,) = Figuring(gq).read().services
    assert (service.lag_s, service.error) == (None, "no Redis")
    gq.store.services.release("mirror", term)
    assert Figuring(gq).read().services[0].worker_id is None


def test_a_file_that_was_replaced_is_not_read_on(gq: GPUQueue) -> None:
    figuring = Figuring(gq)
    figuring.read()
    gq.database.rename(gq.database.with_suffix(".old"))
    with pytest.raises(StoreError, match="was deleted or replaced"):
        figuring.read()
    gq.database.write_bytes(b"")
    with pytest.raises(StoreError, match="was deleted or replaced"):
        figuring.read()
