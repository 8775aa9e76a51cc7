"""The client: enqueueing, waiting, streaming, finding and controlling, as an application uses it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpuqueue import (
    GPUQueue,
    JobCancelled,
    JobExpired,
    JobFailed,
    PayloadError,
    ServiceUnavailable,
    State,
    StateError,
    UnknownJob,
    UnknownQueue,
    UnknownTask,
    UsageError,
)
from gpuqueue.domain.errors import CallerFault, ConfigurationError
from gpuqueue.domain.verdicts import Discard, Retry
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import forks
from tests.history import History
from tests.processes import LONGEST_S


@pytest.fixture
def add(gq):
    @gq.task(name="add")
    def add(a: int, b: int = 1) -> int:
        return a + b

    return add


# --- enqueueing ---


def test_a_task_can_still_be_called_as_a_function(add):
    assert add(2, b=3) == 5


def test_an_enqueued_job_waits_with_what_was_asked_for(gq, add):
    job = add.using(priority=5, max_attempts=3, timeout="90s", expires_in="1h", tags=["x", "y"]).enqueue(a=1)

    record = gq.job(job.id).record
    assert (record.state, record.queue, record.task, record.arguments) == ("available", "default", "add", {"a": 1})
    assert (record.priority, record.max_attempts, record.timeout_s, record.tags) == (5, 3, 90.0, ("x", "y"))
    assert record.expires_at - record.enqueued_at == timedelta(hours=1)
    assert (job.attempt, job.started_at, job.finished_at, job.error) == (0, None, None, None)


def test_a_delayed_job_is_scheduled_for_later(gq, add):
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)

    assert add.using(at=at).enqueue(a=1).record.scheduled_at == at
    delayed = add.using(delay=timedelta(minutes=5)).enqueue(a=1)
    assert delayed.state == "scheduled"
    assert delayed.record.scheduled_at - delayed.enqueued_at == timedelta(minutes=5)


def test_options_given_later_go_before_those_given_first(gq):
    @gq.task(name="work", queue="mail", max_attempts=4, priority=1, timeout="5s")
    def work() -> None: ...

    chained = work.using(priority=2, delay="5m").using(at=datetime(2020, 1, 1, tzinfo=UTC), queue="default").enqueue().record
    assert (chained.priority, chained.max_attempts, chained.timeout_s, chained.queue) == (2, 4, 5.0, "default")
    assert chained.state == "available"
    assert work.enqueue().queue == "mail"


def test_a_queue_gives_the_defaults_that_the_task_leaves_open(gq):
    gq.queue("mail", max_attempts=7, timeout_s=3.0, priority=-2)

    @gq.task(name="work", queue="mail", priority=9)
    def work() -> None: ...

    record = work.enqueue().record
    assert (record.max_attempts, record.timeout_s, record.priority) == (7, 3.0, 9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"delay": "5 parsecs"}, "delay"),
        ({"timeout": "-1s"}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"expires_in": "soon"}, "expires_in"),
        ({"priority": "high"}, "priority"),
        ({"priority": 10**7}, "priority"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"tags": "urgent"}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"tags": 5}, "tags"),
        ({"at": datetime(2030, 1, 1)}, "time zone"),
        ({"at": "2030-01-01"}, "at "),
        ({"at": datetime(2030, 1, 1, tzinfo=UTC), "delay": "1s"}, "not both"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_stored(gq, add, options, said):
    with pytest.raises(UsageError, match=said):
        add.using(**options).enqueue(a=1)
    with pytest.raises(UsageError, match=said):
        gq.enqueue("add", {"a": 1}, **options)
    with pytest.raises(UsageError, match=said):
        gq.ollama.generate("m", prompt="p", queue="default", job=options)
    assert gq.jobs() == []


def test_a_queue_object_says_which_file_it_is(gq):
    assert str(gq.database) in repr(gq)


def test_an_unknown_option_is_named(gq, add):
    for enqueue in (
        lambda: gq.enqueue("add", {"a": 1}, prioritiy=1),
        lambda: gq.enqueue_many([{"task": "add", "arguments": {"a": 1}, "prioritiy": 1}]),
        lambda: gq.ollama.generate("m", prompt="p", queue="default", job={"prioritiy": 1}),
    ):
        with pytest.raises(UsageError, match=r"unknown job option 'prioritiy'.*did you mean 'priority'"):
            enqueue()


def test_the_options_of_a_model_job_cannot_name_the_queue_twice(gq):
    with pytest.raises(UsageError, match="queue"):
        gq.ollama.generate("m", prompt="p", queue="default", job={"queue": "default"})


def test_a_job_can_be_enqueued_by_the_name_of_its_task(gq, add):
    job = gq.enqueue("add", {"a": 1}, priority=3)
    assert (job.task, job.record.priority) == ("add", 3)


def test_an_unknown_task_is_refused_with_the_nearest_name(gq, add):
    with pytest.raises(UnknownTask, match=r"'ad'.*did you mean 'add'"):
        gq.enqueue("ad")


def test_an_unknown_queue_is_refused_with_the_nearest_name(gq, add):
    gq.queue("mail")
    for use in (
        lambda: gq.enqueue("add", {"a": 1}, queue="mial"),
        lambda: gq.pause("mial"),
        lambda: gq.resume("mial"),
        lambda: gq.jobs(queue="mial"),
        lambda: gq.queue("other", yields_to=("mial",)),
    ):
        with pytest.raises(UnknownQueue, match=r"'mial'.*did you mean 'mail'"):
            use()


def test_a_queue_that_another_process_configured_is_known(gq, make_queue, add, start_worker):
    start_worker(make_queue("[queues.elsewhere]\n"))
    assert gq.enqueue("add", {"a": 1}, queue="elsewhere").queue == "elsewhere"


def test_many_jobs_are_stored_together_in_their_order(gq, add):
    jobs = gq.enqueue_many([(add, {"a": 1}), ("add", {"a": 2}), {"task": add, "arguments": {"a": 3}, "priority": 4}])
    assert [job.record.arguments["a"] for job in jobs] == [1, 2, 3]
    assert [job.record.priority for job in jobs] == [0, 0, 4]


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (("add", {"c": 1}), UsageError, "unknown argument 'c'"),
        (("ad", {"a": 1}), UnknownTask, "did you mean 'add'"),
        ({"task": "add", "arguments": {"a": 1}, "queue": "mail"}, UnknownQueue, "unknown queue 'mail'"),
        (("add", {"a": {1}}), PayloadError, "must be JSON"),
        (7, UsageError, r"expected \(task, arguments\)"),
    ],
)
def test_one_wrong_job_of_many_is_named_and_none_is_stored(gq, add, wrong, error, said):
    with pytest.raises(error, match=rf"job 1 of this call.*{said}"):
        gq.enqueue_many([("add", {"a": 1}), wrong])
    assert gq.jobs() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({}, "missing argument.*: a"), ({"a": 1, "bb": 2}, "unknown argument 'bb'.*did you mean 'b'.*Arguments: a, b")],
)
def test_arguments_that_do_not_fit_the_function_are_refused(add, arguments, said):
    with pytest.raises(UsageError, match=said):
        add.enqueue(**arguments)


def test_arguments_are_given_by_name(add):
    with pytest.raises(UsageError, match="by name"):
        add.enqueue(1)


def test_a_function_with_any_keywords_takes_any_and_one_with_positional_only_none(gq):
    @gq.task(name="any")
    def any_(a: int, **rest: int) -> None: ...

    assert any_.enqueue(a=1, z=2).record.arguments == {"a": 1, "z": 2}
    with pytest.raises(UsageError, match="'a' is positional-only"):

        @gq.task
        def work(a: int, /) -> None: ...


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), b"bytes"])
def test_arguments_that_are_not_json_are_refused(gq, add, value):
    with pytest.raises(PayloadError, match="arguments of add must be JSON"):
        add.enqueue(a=value)


def test_half_a_character_goes_in_and_comes_back(gq, start_worker):
    @gq.task(name="echo")
    def echo(text: str) -> str:
        return text

    start_worker(gq)
    assert echo.enqueue(text="ä \ud83d").result(timeout_s=DEADLINE_S) == "ä \ud83d"


def test_arguments_beyond_the_configured_limit_are_refused(make_queue):
    gq = make_queue('max_payload = "2kB"\n')

    @gq.task(name="keep")
    def keep(text: str) -> None: ...

    assert keep.enqueue(text="x" * 1900).record.arguments == {"text": "x" * 1900}
    with pytest.raises(PayloadError, match=r"exceeds the limit of 2 kB \(max_payload\)"):
        keep.enqueue(text="x" * 2000)


def test_the_name_of_a_task_is_taken_once(gq, add):
    with pytest.raises(UsageError, match="'add' already exists"):

        @gq.task(name="add")
        def other() -> None: ...


def test_a_task_is_named_by_its_module_and_its_place_there(gq):
    @gq.task
    def work() -> None: ...

    assert work.name.endswith("test_a_task_is_named_by_its_module_and_its_place_there.<locals>.work")
    assert repr(work) == f"<task {work.name}>"


def test_wrong_settings_of_a_queue_are_refused_when_it_is_made(gq):
    for settings, said in (
        ({"colour": "red"}, "colour"),
        ({"pause": ("9-18",)}, "pause"),
        ({"timezone": "Asia/Bankok"}, "timezone"),
        ({"concurrency": 0}, "concurrency"),
        ({"when_unavailable": "panic"}, "when_unavailable"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            gq.queue("work", **settings)
    gq.queue("a")
    gq.queue("b", yields_to=("a",))
    with pytest.raises(ConfigurationError, match="cycle: a → b → a"):
        gq.queue("a", yields_to=("b",))


# --- model jobs ---


def test_model_jobs_keep_their_request(gq):
    generated = gq.ollama.generate("gemma4:e4b", prompt="Hi", queue="default", system="Be short", job={"priority": 2})
    chatted = gq.ollama.chat("gemma4:e4b", messages=({"role": "user", "content": "Hi"},), queue="default")
    embedded = gq.ollama.embed("nomic-embed-text", input=["a", "b"], queue="default", dimensions=64)

    assert generated.record.arguments == {"model": "gemma4:e4b", "prompt": "Hi", "system": "Be short"}
    assert (generated.task, generated.record.priority) == ("ollama.generate", 2)
    assert chatted.record.arguments["messages"] == [{"role": "user", "content": "Hi"}]
    assert embedded.record.arguments["dimensions"] == 64


def test_a_model_job_with_an_argument_that_the_verb_lacks_is_refused(gq):
    with pytest.raises(UsageError, match=r"ollama.generate: unknown argument 'promt'.*did you mean 'prompt'"):
        gq.ollama.generate("m", prompt="p", promt="q", queue="default")
    with pytest.raises(UsageError, match="can only run in a worker, by an executor"):
        gq.tasks["ollama.generate"]()


# --- results ---


def test_a_result_is_what_the_function_returned(gq, add, start_worker):
    start_worker(gq)
    job = add.enqueue(a=2, b=3)
    assert job.result(timeout_s=DEADLINE_S) == 5
    assert (job.state, job.attempt, str(job.explain())) == ("completed", 1, f"job {job.id}: completed in attempt 1")
    assert job.finished_at >= job.started_at >= job.enqueued_at
    assert repr(job) == f"<job {job.id} completed in default>"


def test_large_arguments_and_results_come_through(gq, start_worker):
    @gq.task(name="twice")
    def twice(text: str) -> str:
        return text * 2

    start_worker(gq)
    assert twice.enqueue(text="ä" * 50_000).result(timeout_s=DEADLINE_S) == "ä" * 100_000


def test_a_failed_job_raises_what_went_wrong(gq, start_worker):
    @gq.task(name="fail")
    def fail() -> None:
        raise RuntimeError("the server said no")

    start_worker(gq)
    job = fail.enqueue()
    with pytest.raises(JobFailed, match=f"job {job.id}: RuntimeError: the server said no") as caught:
        job.result(timeout_s=DEADLINE_S)
    assert (caught.value.job_id, caught.value.code) == (job.id, "failed")
    assert "in fail" in job.error.traceback


def test_the_callers_own_fault_is_never_tried_again(gq, start_worker):
    @gq.task(name="fail", max_attempts=5)
    def fail() -> None:
        raise CallerFault("no such model")

    start_worker(gq)
    job = fail.enqueue()
    with pytest.raises(JobFailed, match="no such model") as caught:
        job.result(timeout_s=DEADLINE_S)
    assert (caught.value.code, job.attempt) == ("caller_fault", 1)


def test_a_cancelled_job_raises_and_can_be_retried(gq, add, start_worker):
    job = add.enqueue(a=1)
    assert job.cancel() is True
    assert job.cancel() is False
    with pytest.raises(JobCancelled, match=f"job {job.id} was cancelled"):
        job.result(timeout_s=DEADLINE_S)

    assert job.retry().state == "available"
    with pytest.raises(StateError, match="is available"):
        job.retry()
    start_worker(gq)
    assert job.result(timeout_s=DEADLINE_S) == 2
    with pytest.raises(StateError, match="is completed"):
        job.retry()


def test_a_job_that_is_not_begun_in_time_expires_also_without_a_worker(gq, add):
    job = add.using(expires_in="10ms").enqueue(a=1)
    with pytest.raises(JobExpired, match="expired before it could start") as caught:
        job.result(timeout_s=DEADLINE_S)
    assert caught.value.code == "expired"


def test_waiting_too_long_leaves_the_job_alone_and_says_why_it_waits(gq, add):
    job = add.enqueue(a=1)
    with pytest.raises(TimeoutError, match=r"no_worker(.|\n)*cancel it with job.cancel"):
        job.result(timeout_s=0)
    with pytest.raises(TimeoutError, match="no_worker"):
        list(job.stream(timeout_s=0.01))
    assert job.refresh().state == "available"


def test_a_job_that_nobody_will_run_says_so_and_names_the_command(gq, add, caplog, until):
    job = add.enqueue(a=1)
    with caplog.at_level(logging.WARNING, "gpuqueue"), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(job.result, timeout_s=DEADLINE_S)
        until(lambda: caplog.records, "the warning")
        job.cancel()
        with pytest.raises(JobCancelled):
            waiting.result()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert (
        f"job {job.id} is waiting: no worker serves queue 'default'. Start one: gpuqueue --database {gq.database}" in warnings[0]
    )


def test_a_job_of_a_rejecting_queue_that_no_worker_serves_is_refused(gq):
    gq.queue("ai", when_unavailable="reject")

    @gq.task(name="work", queue="ai")
    def work() -> None: ...

    job = work.enqueue()
    with pytest.raises(ServiceUnavailable, match=r"^AI service temporarily unavailable$") as caught:
        job.result(timeout_s=DEADLINE_S)
    assert (caught.value.code, job.state) == ("unavailable", "discarded")
    with pytest.raises(ServiceUnavailable):
        list(work.enqueue().stream(timeout_s=DEADLINE_S))


def test_an_unknown_job_is_refused(gq):
    for use in (
        lambda: gq.job(99),
        lambda: gq.explain(99),
        lambda: next(iter([gq.job(99)])),
    ):
        with pytest.raises(UnknownJob, match="unknown job 99"):
            use()


# --- streams ---


class Teller:
    """An executor that emits what the test tells it to."""

    def __init__(self) -> None:
        self.contexts: list = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.failures = 0

    def run(self, context):
        self.contexts.append(context)
        context.emit(f"attempt {context.lease.attempt}: ")
        self.begun.set()
        assert self.go_on.wait(DEADLINE_S)
        if len(self.contexts) <= self.failures:
            raise RuntimeError("once more")
        context.emit("the end")
        return "told"


class TellerPlugin:
    def __init__(self, teller) -> None:
        self.teller = teller

    from gpuqueue import hookimpl

    @hookimpl
    def register_executors(self, details):
        return {"tell": self.teller}

    @hookimpl
    def attempt_failed(self, details):
        return Retry(0) if details.lease.attempt < details.lease.max_attempts else Discard("no more")


@pytest.fixture
def teller(gq):

    teller = Teller()
    gq.plugins.register(TellerPlugin(teller))
    teller.task = gq.verb("tell")
    yield teller
    teller.go_on.set()


def test_output_is_read_while_the_job_runs_and_again_after_it(gq, teller, start_worker):
    start_worker(gq)
    job = teller.task.enqueue()
    pieces = job.stream(timeout_s=DEADLINE_S)

    assert next(pieces) == "attempt 1: "
    assert job.refresh().state == "running"
    teller.go_on.set()
    assert "".join(pieces) == "the end"
    assert "".join(job.stream(timeout_s=DEADLINE_S)) == "attempt 1: the end"
    assert job.result(timeout_s=DEADLINE_S) == "told"


def test_an_attempt_that_is_tried_again_begins_its_output_anew(gq, teller, start_worker):
    teller.failures = 1
    teller.go_on.set()
    start_worker(gq)
    job = teller.task.using(max_attempts=2).enqueue()

    pieces = list(job.stream(timeout_s=DEADLINE_S))
    assert [(str(piece), piece.attempt_lease) for piece in pieces] == [("attempt 1: ", 1), ("attempt 2: the end", 2)]


def test_a_stream_of_a_failed_job_ends_with_its_error(gq, teller, start_worker):
    teller.failures = 1
    teller.go_on.set()
    start_worker(gq)
    read = []
    with pytest.raises(JobFailed, match="no more"):
        for piece in teller.task.using(max_attempts=1).enqueue().stream(timeout_s=DEADLINE_S):
            read.append(piece)
    assert read == ["attempt 1: "]


# --- controlling and looking ---


def test_a_paused_queue_starts_nothing_until_it_is_resumed(gq, add, start_worker):
    start_worker(gq)
    gq.pause("default", reason="maintenance", by="ana")
    job = add.enqueue(a=1)
    assert [(hold.reason, hold.detail) for hold in gq.holds()["default"]] == [("paused", "paused by ana (maintenance)")]
    with pytest.raises(TimeoutError, match=r"paused by ana \(maintenance\)(.|\n)*gpuqueue resume default"):
        job.result(timeout_s=0.2)

    assert gq.resume("default", by="ana") is True
    assert gq.resume("default") is False
    assert job.result(timeout_s=DEADLINE_S) == 2


def test_a_pause_ends_by_itself(gq, add, start_worker):
    start_worker(gq)
    gq.pause("default", until="300ms")
    (hold,) = gq.holds()["default"]
    assert hold.until - gq.now() < timedelta(seconds=0.3)
    assert add.enqueue(a=1).result(timeout_s=DEADLINE_S) == 2
    gq.pause("default", until=gq.now() - timedelta(seconds=1))
    assert gq.holds()["default"] == []


def test_jobs_are_counted_by_queue_and_state(gq, add, start_worker, until):
    gq.queue("mail")
    add.using(delay="1h").enqueue(a=1)
    add.enqueue(a=1).cancel()
    add.using(queue="mail").enqueue(a=1)
    assert gq.counts() == {"default": {"scheduled": 1, "cancelled": 1}, "mail": {"available": 1}}
    start_worker(gq)
    until(lambda: gq.counts() == {"default": {"scheduled": 1, "cancelled": 1}, "mail": {"completed": 1}})


def test_jobs_are_listed_in_pages_the_newest_first(gq, add):
    ids = [job.id for job in gq.enqueue_many([(add, {"a": n}) for n in range(5)])]
    gq.job(ids[0]).cancel()

    first = gq.jobs(limit=2)
    assert [job.id for job in first] == ids[:-3:-1]
    assert [job.id for job in gq.jobs(limit=9, after=first[-1].id)] == ids[2::-1]
    assert [job.id for job in gq.jobs(state="cancelled")] == [ids[0]]
    assert len(gq.jobs(queue="default", state="available")) == 4
    with pytest.raises(UsageError, match=r"unknown state 'lost'\. States: scheduled"):
        gq.jobs(state="lost")


def test_the_workers_that_live_are_listed(gq, start_worker):
    assert gq.workers() == []
    worker = start_worker(gq, queues=["default"])
    (found,) = gq.workers()
    assert (found.id, found.queues, found.pid, found.alive) == (worker.id, ("default",), os.getpid(), True)
    worker.stop()
    assert gq.workers() == []


def test_every_state_explains_itself(gq, start_worker, gate, until):
    gq.queue("one", concurrency=1)

    @gq.task(name="hold", queue="one")
    def hold() -> None:
        gate.pass_through()

    @gq.task(name="fail", max_attempts=2)
    def fail() -> None:
        raise RuntimeError("no")

    later, waiting = hold.using(delay="1h").enqueue(), hold.enqueue()
    assert "scheduled: not due" in str(later.explain())
    assert f"start a worker: gpuqueue --database {gq.database} worker --app" in str(waiting.explain())
    start_worker(gq)
    gate.wait_reached()
    assert str(waiting.explain()) == f"job {waiting.id}: running, attempt 1 of 1"
    second, third = hold.enqueue(), hold.enqueue()
    assert f"concurrency: one is at its concurrency limit: 1 of 1 running (job {waiting.id})" in str(second.explain())
    assert "behind: 1 job in one is ahead of it" in str(third.explain())
    waiting.cancel()
    assert "asked to stop" in str(waiting.explain())

    failing = fail.enqueue()
    until(lambda: failing.refresh().state == "retryable")
    assert "retryable: RuntimeError: no; waiting for its next attempt" in str(failing.explain())
    third.cancel()
    assert str(third.explain()) == f"job {third.id}: cancelled\n  → gpuqueue retry {third.id}"
    gq.store.jobs.refuse_one(later.id, message="away", now_us=gq.now_us())
    assert "discarded: away (unavailable)" in str(later.explain())


# --- processes and threads ---


def test_many_threads_use_one_queue_object(gq, add, start_worker):
    start_worker(gq)
    results: dict[int, int] = {}

    def use(number: int) -> None:
        results[number] = add.enqueue(a=number).result(timeout_s=DEADLINE_S)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: number + 1 for number in range(24)}


def test_first_use_from_many_threads_opens_the_file_once(gq):
    barrier = threading.Barrier(8, timeout=DEADLINE_S)
    stores = []

    def use() -> None:
        barrier.wait()
        stores.append(gq.store)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(store) for store in stores}) == 1


@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_queue_object_works_on_after_a_fork(gq, add):
    history = History(gq)
    first = add.enqueue(a=1)
    process = multiprocessing.get_context("fork").Process(target=lambda: add.enqueue(a=2), daemon=True)
    process.start()
    process.join(DEADLINE_S)
    assert process.exitcode == 0
    third = add.enqueue(a=3)
    assert [job.record.arguments["a"] for job in gq.jobs()] == [3, 2, 1]
    assert (first.id, third.id) == (1, 3)
    history.check(unfinished=[1, 2, 3])


def test_a_queue_object_that_nobody_closed_says_nothing(tmp_path: Path) -> None:
    """From Python 3.13 on, a connection that finds itself unclosed warns."""
    script = "import gc; gq = GPUQueue('q.db', discover_plugins=False); gq.counts(); del gq; gc.collect()"
    command = [sys.executable, "-X", "dev", "-c", f"from gpuqueue import GPUQueue; {script}"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST_S, check=True)
    assert ran.stderr == ""


def test_a_closed_queue_object_opens_again_when_used(gq, add):
    with gq:
        add.enqueue(a=1)
    assert len(gq.jobs()) == 1


def test_a_task_of_a_script_is_found_by_a_worker_that_imports_its_module(tmp_path, make_queue, start_worker, monkeypatch):
    (tmp_path / "shop.py").write_text(
        "from gpuqueue import GPUQueue\n"
        f"gq = GPUQueue({str(tmp_path / 'gpuqueue.db')!r})\n"
        "@gq.task\n"
        "def greet(name: str) -> str:\n"
        "    return f'hello {name}'\n"
        "if __name__ == '__main__':\n"
        "    print(greet.enqueue(name='ana').id)\n"
    )
    history = History(make_queue())
    for command in ([sys.executable, "shop.py"], [sys.executable, "-m", "shop"]):
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST_S, check=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    import shop

    try:
        start_worker(shop.gq)
        assert [shop.gq.job(number).result(timeout_s=DEADLINE_S) for number in range(1, int(ran.stdout) + 1)] == ["hello ana"] * 2
        assert shop.gq.job(1).task == "shop.greet"
        history.check(completed=[1, 2])
    finally:
        shop.gq.close()
        sys.modules.pop("shop")


def test_a_model_is_refused_in_a_queue_that_would_not_reserve_its_memory(tmp_path: Path) -> None:
    (tmp_path / "gpuqueue.toml").write_text("[gpu]\nbudget = '5GB'\n[ollama]\n[queues.mail]\n[queues.ai]\ngpu = true\n")
    with GPUQueue.from_config(tmp_path / "gpuqueue.toml") as gq:
        with pytest.raises(UsageError, match=r"'mail' does not set gpu = true.*Queues with gpu = true: ai$"):
            gq.ollama.generate("m", prompt="p", queue="mail")
        assert gq.ollama.generate("m", prompt="p", queue="ai").state is State.AVAILABLE
