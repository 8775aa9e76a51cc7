"""A worker's log: one line for each event, with its job and lease, as text and as JSON; each event with its documented fields."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue, ServiceUnavailable, Snooze, current_job
from gpuqueue.domain.claim import Capacity, ClaimRules
from gpuqueue.domain.job import Lease
from gpuqueue.logs import EVENTS, KEYS
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import AI, GEMMA
from tests.processes import read_until, started

SHOP = """\
import logging

from gpuqueue import GPUQueue, current_job

gq = GPUQueue.from_config("gpuqueue.toml")

@gq.task(queue="mail")
def send():
    logging.getLogger("shop").warning("out of paper\\nand of ink")
    current_job().log("sent")

@gq.task(queue="mail", max_attempts=2, backoff=lambda attempt: 0)
def fail():
    try:
        raise KeyError("inner")
    except KeyError:
        logging.getLogger("shop").exception("it failed")
    raise RuntimeError("the server said no")

@gq.task(queue="mail", isolate=True)
def far_away():
    raise RuntimeError("in another process")
"""


def run_worker(folder: Path, *options: str, **environ: str) -> list[str]:
    """Run three jobs in a worker process, end it by a signal, and return what it wrote to stderr."""
    (folder / "gpuqueue.toml").write_text('database = "jobs.db"\n[queues.mail]\n')
    (folder / "shop.py").write_text(SHOP)
    with GPUQueue.from_config(folder / "gpuqueue.toml") as gq:
        for name in ("send", "fail", "far_away"):
            gq.task(name=f"shop.{name}", queue="mail")(lambda: None)
            gq.enqueue(f"shop.{name}", max_attempts=2 if name == "fail" else 1)
    command = [sys.executable, "-m", "gpuqueue", "worker", "--app", "shop:gq", "--threads", "1", *options]
    environment = {**os.environ, "PYTHONPATH": str(folder), **environ}
    with started(command, cwd=folder, stderr=subprocess.PIPE, env=environment) as process:
        ends = ("job 1 of mail completed", "job 2 of mail was discarded", "job 3 of mail was discarded")
        said = read_until(process.stderr, *ends)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    return (said + rest).splitlines(keepends=True)


@pytest.fixture(scope="module", params=["the option", "the environment"])
def lines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The log of a worker process as JSON, which is asked for in each way."""
    folder = tmp_path_factory.mktemp("json")
    if request.param == "the option":
        written = run_worker(folder, "--log-format", "json", "--log-level", "debug", GPUQUEUE_WORKER_LOG_FORMAT="text")
    else:
        written = run_worker(folder, "--log-level", "debug", GPUQUEUE_WORKER_LOG_FORMAT="json")
    return [json.loads(line) for line in written]


def own_fields(line: dict[str, Any]) -> tuple[str, ...]:
    return tuple(key for key in line if key not in KEYS)


def test_every_line_is_an_object_with_the_documented_keys(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert tuple(line)[: len(KEYS)] == KEYS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["at"])
        assert own_fields(line) == (EVENTS[line["event"]].fields if line["event"] else ())
    worker = lines[0]["worker"]
    assert worker
    assert {line["worker"] for line in lines} == {worker}
    assert [lines[0]["event"], lines[-2]["event"], lines[-1]["event"]] == ["worker_started", "worker_stopping", "worker_stopped"]


def test_the_lines_of_jobs_name_job_lease_queue_and_task(lines: list[dict[str, Any]]) -> None:
    told = [(line["event"], line["job"], line["lease"]) for line in lines if line["event"] and line["job"]]
    assert sorted(told, key=lambda item: item[1:]) == [
        ("attempt_started", 1, 1),
        ("job_completed", 1, 1),
        ("attempt_started", 2, 1),
        ("job_retried", 2, 1),
        ("attempt_started", 2, 2),
        ("job_discarded", 2, 2),
        ("attempt_started", 3, 1),
        ("job_discarded", 3, 1),
    ]
    assert {(line["queue"], line["task"]) for line in lines if line["job"] == 2} == {("mail", "shop.fail")}


def test_a_failed_jobs_error_and_traceback_stand_inside_its_line(lines: list[dict[str, Any]]) -> None:
    for job, raised in ((2, "the server said no"), (3, "in another process")):
        (line,) = [line for line in lines if line["event"] == "job_discarded" and line["job"] == job]
        assert (line["code"], line["error"]) == ("failed", f"RuntimeError: {raised}")
        assert line["level"] == "warning"
        assert f'raise RuntimeError("{raised}")' in line["traceback"]


def test_what_a_task_says_through_other_loggers_has_its_job_and_lease(lines: list[dict[str, Any]]) -> None:
    (paper,) = [line for line in lines if line["message"] == "out of paper\nand of ink"]
    assert (paper["logger"], paper["event"], paper["job"], paper["lease"]) == ("shop", None, 1, 1)
    assert [(line["logger"], line["job"]) for line in lines if line["message"].endswith("sent")] == [("gpuqueue.job", 1)]
    failures = [line for line in lines if line["message"] == "it failed"]
    assert [(line["job"], line["lease"]) for line in failures] == [(2, 1), (2, 2)]
    assert all('raise KeyError("inner")' in line["traceback"] for line in failures)


def test_as_text_each_event_is_a_line_for_people(tmp_path: Path) -> None:
    lines = run_worker(tmp_path, "--log-level", "debug")
    words = "".join(re.sub(r"^\S+ \S+ ([A-Z]+) ", r"\1 ", line) for line in lines)
    assert words.startswith(f"database: {tmp_path / 'jobs.db'}\nqueues: all queues")
    assert "INFO worker " in words
    assert "DEBUG job 1 of mail started attempt 1 of 1 (lease 1)\n" in words
    assert re.search(r"^DEBUG job 1 of mail completed in [\d.]+ m?s \(lease 1\)$", words, flags=re.M)
    assert "WARNING job 2 of mail was returned to its queue (retried): RuntimeError: the server said no (lease 1)\n" in words
    assert "WARNING job 2 of mail was discarded: RuntimeError: the server said no (lease 2)\n" in words
    assert "\nstopping; a second signal returns running jobs to the queue\n" in words
    assert lines[-1].endswith(" stopped\n")


# --- the events of an embedded worker, as data ---


class Told(logging.Handler):
    """What every event says; each must say what is documented of it."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self.wrong: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = getattr(record, "gpuqueue", None)
        if said is None:
            return
        self.events.append({**said, "level": record.levelname, "message": record.getMessage()})
        if own_fields({key: value for key, value in said.items()}) != EVENTS[said["event"]].fields:
            self.wrong.append(f"{said['event']} says {own_fields(said)}")

    def named(self, event: str, **wanted: Any) -> list[dict[str, Any]]:
        return [item for item in self.events if item["event"] == event and wanted.items() <= item.items()]

    def names(self, job: int) -> list[str]:
        return [item["event"] for item in self.events if item.get("job") == job]


@pytest.fixture
def told() -> Iterator[Told]:
    """The events that are told from now on, at every level."""
    logger, told = logging.getLogger("gpuqueue"), Told()
    before = logger.level
    logger.addHandler(told)
    logger.setLevel(logging.DEBUG)
    yield told
    logger.removeHandler(told)
    logger.setLevel(before)
    assert told.wrong == []


Until = Callable[..., Any]


def test_a_job_on_a_card_tells_its_loading_its_end_and_its_clean_up(ai: AI, start_worker: Any, told: Told, until: Until) -> None:
    worker = start_worker(ai.gq)
    job = ai.batch()
    job.result(timeout_s=DEADLINE_S)
    until(lambda: told.named("memory_released", job=job.id), "its clean-up")
    assert told.names(job.id) == ["attempt_started", "model_loaded", "job_completed", "memory_released"]
    started, loaded, completed, released = (item for item in told.events if item.get("job") == job.id)
    assert (started["device"], started["model"], started["reserved_bytes"]) == ("gpu0", GEMMA, 4_500_000_000)
    assert 0 < loaded["load_s"] < completed["run_s"]
    assert released["clean_up_s"] > 0
    assert {item["level"] for item in (started, loaded, completed, released)} == {"INFO"}
    assert {item["worker"] for item in told.events} == {worker.id}
    assert {(item["lease"], item["queue"], item["task"]) for item in (started, loaded, completed, released)} == {
        (1, "ai-batch", "ollama.generate")
    }


def test_a_model_that_leaves_for_another_tells_how_long_that_took(ai: AI, start_worker: Any, told: Told) -> None:
    import httpx

    httpx.post(f"{ai.ollama.url}/api/generate", json={"model": GEMMA, "keep_alive": -1}, timeout=DEADLINE_S)
    start_worker(ai.gq)
    job = ai.embed()
    job.result(timeout_s=DEADLINE_S)
    (evicted,) = told.named("model_evicted")
    assert (evicted["job"], evicted["lease"], evicted["models"], evicted["device"]) == (job.id, 1, [GEMMA], "gpu0")
    assert evicted["evict_s"] > 0


def test_a_job_that_makes_room_tells_who_asked_and_that_it_goes_back(
    make_queue: Any, ai: AI, start_worker: Any, told: Told, until: Until
) -> None:
    gq = make_queue(ai.toml.replace("yields_to", 'min_run = "0s"\nnearly_done = "0s"\nyields_to'))
    start_worker(gq)
    batch = gq.ollama.generate(GEMMA, prompt="long", queue="ai-batch", options={"num_predict": 100_000})
    next(iter(batch.stream(timeout_s=DEADLINE_S)))
    person = gq.ollama.generate(GEMMA, prompt="now", queue="ai-realtime", options={"num_predict": 5})
    person.result(timeout_s=DEADLINE_S)
    until(lambda: told.named("job_preempted"), "it goes back")
    (asked,) = told.named("preemption_requested", job=batch.id)
    assert (asked["lease"], asked["for_job"]) == (1, person.id)
    (back,) = told.named("job_preempted", job=batch.id)
    assert (back["lease"], back["level"]) == (1, "INFO")
    held = told.named("queue_held", queue="ai-batch")
    assert "yielding" in {reason for item in held for reason in item["reasons"]}
    batch.cancel()
    until(lambda: told.named("job_cancelled", job=batch.id) or batch.refresh().state == "cancelled", "it is cancelled")


def test_an_outage_tells_that_it_began_whom_it_refused_and_that_it_is_over(
    ai: AI, start_worker: Any, told: Told, until: Until
) -> None:
    ai.ollama.go_away()
    start_worker(ai.gq)
    until(lambda: told.named("backend_lost"), "the outage")
    refused = ai.realtime()
    with pytest.raises(ServiceUnavailable):
        refused.result(timeout_s=DEADLINE_S)
    (lost,) = told.named("backend_lost")
    assert lost["backend"] == "ollama"
    assert lost["error"] and lost["retry_at"].endswith("Z")
    ai.ollama.come_back()
    until(lambda: told.named("backend_recovered", backend="ollama") and told.named("queue_released"), "the end of the outage")
    assert told.named("queue_released", queue="ai-realtime")
    assert len(told.named("backend_lost")) == 1, "each once"


def test_jobs_that_are_refused_are_counted(ai: AI, start_worker: Any, told: Told, until: Until) -> None:
    ai.ollama.go_away()
    waiting = [ai.realtime() for _ in range(3)]
    start_worker(ai.gq)
    until(lambda: all(job.refresh().state == "discarded" for job in waiting), "their end")
    # The first may have been tried, which found the outage; the others were refused while they waited.
    tried = len(told.named("job_discarded", queue="ai-realtime"))
    until(lambda: sum(item["count"] for item in told.named("jobs_refused", queue="ai-realtime")) == 3 - tried, "the others")
    assert tried <= 1


def test_a_card_that_is_lost_during_a_job_tells_that_once_and_which_memory_is_kept_until_it_is_back(
    ai: AI, start_worker: Any, told: Told, until: Until
) -> None:
    start_worker(ai.gq)
    job = ai.batch()
    next(iter(job.stream(timeout_s=DEADLINE_S)))
    ai.card.lost = True
    (kept, *_) = until(lambda: told.named("memory_kept", job=job.id), "the clean-up")
    assert kept["device"] == "gpu0"
    assert "cannot be read" in kept["detail"]
    (lost,) = until(lambda: told.named("device_lost"), "the loss")
    assert (lost["device"], lost["level"]) == ("gpu0", "ERROR")
    ai.card.lost = False
    until(lambda: told.named("device_recovered", device="gpu0"), "its return")
    until(lambda: told.named("memory_released", job=job.id), "the end of the clean-up")
    assert len(told.named("device_lost")) == 1


def test_a_snoozed_job_tells_until_when(gq: GPUQueue, start_worker: Any, told: Told, until: Until) -> None:
    @gq.task(name="later")
    def later() -> None:
        raise Snooze("1h", reason="closed")

    start_worker(gq)
    job = later.enqueue()
    (item,) = until(lambda: told.named("job_snoozed", job=job.id), "it is postponed")
    assert (item["code"], item["error"], item["waiting_for"]) == ("snoozed", "closed", None)
    assert re.fullmatch(r"\d{4}-.*Z", item["due_at"])


def test_a_job_that_no_worker_knows_is_told(gq: GPUQueue, make_queue: Any, start_worker: Any, told: Told, until: Until) -> None:
    gq.task(name="elsewhere")(lambda: None)
    job = gq.enqueue("elsewhere")
    start_worker(make_queue())
    (item,) = until(lambda: told.named("job_snoozed", job=job.id), "it is postponed")
    assert item["code"] == "unknown_task"
    assert "--app" in item["message"]


def test_a_worker_that_stops_tells_which_job_it_gave_back_and_which_it_gave_up(
    gq: GPUQueue, start_worker: Any, gate: Any, told: Told, until: Until
) -> None:
    @gq.task(name="polite")
    def polite() -> None:
        while True:
            current_job().check()
            gate.reached.wait(0.01)

    @gq.task(name="deaf")
    def deaf() -> None:
        gate.pass_through()

    worker = start_worker(gq)
    jobs = [polite.enqueue(), deaf.enqueue()]
    gate.wait_reached()
    until(lambda: jobs[0].refresh().state == "running", "both run")
    worker.stop(grace_s=0)
    assert told.names(jobs[0].id) == ["attempt_started", "job_released"]
    assert told.names(jobs[1].id) == ["attempt_started", "attempt_abandoned", "job_released"]
    assert told.named("attempt_abandoned")[0]["why"] == "stopping"
    assert [item["event"] for item in told.events][-1] == "worker_stopped"


def test_an_attempt_that_ends_too_late_is_told(gq: GPUQueue, start_worker: Any, gate: Any, told: Told, until: Until) -> None:
    @gq.task(name="slow")
    def slow() -> None:
        gate.pass_through()

    worker = start_worker(gq)
    job = slow.enqueue()
    gate.wait_reached()
    gq.store.attempts.rescue(worker.id, by_worker="other", executing=[], proof="a test", max_crashes=3, now_us=gq.now_us())
    gq.pause("default", reason="so that nobody runs it again")
    gate.open()
    (late,) = until(lambda: told.named("attempt_late", job=job.id), "its end")
    assert late["lease"] == 1


def claimed_by_a_dead_worker(gq: GPUQueue) -> Lease:
    """A worker of another host that claimed the only job, with a lease so short that it is silent at once."""
    now_us = gq.now_us()
    gq.store.workers.register(
        "dead", host="far", pid=1, runtime_dir="/nowhere", queues=None, digest="x", expires_at_us=now_us - 1, now_us=now_us - 1
    )
    _, (lease,) = gq.store.attempts.finish_and_claim(
        (),
        worker_id="dead",
        queues=[gq.queue_settings("default")],
        rules=ClaimRules(),
        capacity=Capacity(1),
        now_us=now_us,
    )
    return lease


def test_what_a_dead_worker_left_is_told_with_each_job(gq: GPUQueue, start_worker: Any, told: Told, until: Until) -> None:
    @gq.task(name="work")
    def work() -> None: ...

    job = work.enqueue()
    lease = claimed_by_a_dead_worker(gq)
    start_worker(gq)
    (rescued,) = until(lambda: told.named("job_rescued"), "its rescue")
    assert (rescued["job"], rescued["lease"], rescued["task"]) == (job.id, lease.lease + 1, "work")
    assert (rescued["state"], rescued["dead_worker"]) == ("available", "dead")
    (whole,) = told.named("worker_rescued")
    assert (whole["dead_worker"], whole["jobs"]) == ("dead", 1)


def test_jobs_without_a_device_are_told_at_level_debug_only_and_what_goes_wrong_always(
    gq: GPUQueue, start_worker: Any, told: Told, until: Until
) -> None:
    @gq.task(name="work", max_attempts=1)
    def work(fails: bool) -> None:
        if fails:
            raise RuntimeError("no")

    logging.getLogger("gpuqueue").setLevel(logging.INFO)
    start_worker(gq)
    good, bad = work.enqueue(fails=False), work.enqueue(fails=True)
    until(lambda: told.named("job_discarded", job=bad.id), "the failure")
    assert good.result(timeout_s=DEADLINE_S) is None
    assert told.names(good.id) == []
    assert told.names(bad.id) == ["job_discarded"]


def test_every_documented_event_is_told_somewhere() -> None:
    package = Path(sys.modules["gpuqueue"].__file__ or "").parent
    sources = [path for path in package.rglob("*.py") if path != package / "logs.py"]
    text = "".join(path.read_text() for path in sources)
    built = {"job_retried", "job_snoozed", "job_preempted", "job_released", "job_cancelled", "job_discarded"}
    assert 'f"job_{outcome.' in text
    assert [name for name in EVENTS if name not in built and f'"{name}"' not in text] == []
