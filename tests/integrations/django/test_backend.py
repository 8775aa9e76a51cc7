"""The backend: what is enqueued runs in a worker, is told as a result with its attempts, and Django's signals are sent."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import SuspiciousOperation
from django.test import override_settings
from django.utils import timezone

from gpuqueue import GPUQueue, State, Worker
from gpuqueue.domain.errors import ConfigurationError, JobCancelled, JobFailed
from gpuqueue.integrations.django import DjangoQueue, GPUTask, job_of, queue, task
from gpuqueue.integrations.django.tasks_api import (
    ImmediateBackend,
    InvalidTask,
    TaskResultDoesNotExist,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing import run_until_idle
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import GEMMA, Gate
from tests.integrations.django import tasks
from tests.integrations.django.conftest import DUMMY, UseQueue


def worked(gq: DjangoQueue, result: Any, **options: Any) -> Any:
    """Run what can run, and return the result as it is then."""
    run_until_idle(gq, **options)
    result.refresh()
    return result


# --- enqueueing and results ---


def test_a_task_runs_in_a_worker_and_its_result_is_told(own_file: DjangoQueue) -> None:
    result = tasks.add.enqueue(1, b=2)
    assert (result.status, result.args, result.kwargs, result.attempts) == ("READY", [1], {"b": 2}, 0)
    assert result.started_at is None and result.enqueued_at is not None
    worked(own_file, result)
    assert (result.status, result.return_value, result.attempts) == ("SUCCESSFUL", 3, 1)
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert result.last_attempted_at == result.started_at
    assert result.worker_ids == [own_file.job(job_of(result).id).record.worker_id]
    assert tasks.add.get_result(result.id) == result


def test_the_async_twins_do_the_same(own_file: DjangoQueue) -> None:
    async def view() -> Any:
        result = await tasks.add_later.aenqueue(1, b=2)
        assert await tasks.add_later.aget_result(result.id) == result
        await asyncio.to_thread(run_until_idle, own_file)
        await result.arefresh()
        return result

    result = asyncio.run(view())
    assert (result.status, result.return_value) == ("SUCCESSFUL", 3)


def test_an_asynchronous_task_does_not_take_a_thread_while_it_waits(own_file: DjangoQueue) -> None:
    results = [tasks.add_later.enqueue(number) for number in range(20)]
    assert [worked(own_file, result, threads=1).return_value for result in results] == list(range(20))


def test_a_task_that_takes_its_context_gets_its_own_result(own_file: DjangoQueue) -> None:
    for made in (tasks.who, tasks.who_later):
        result = worked(own_file, made.enqueue())
        assert result.return_value.pop("status", "RUNNING") == "RUNNING"
        assert result.return_value == {"id": result.id, "attempt": 1}


def test_a_worker_finds_a_task_whose_module_nobody_has_imported_there(
    own_file: DjangoQueue, caplog: pytest.LogCaptureFixture, until: Callable[..., Any]
) -> None:
    with GPUQueue(own_file.database, discover_plugins=False) as other:  # as another process enqueues
        jobs = [
            other.verb(f"tests.integrations.django.{path}", max_attempts=1).enqueue(args=[1], kwargs={})
            for path in ("tasks.add", "tasks.add_later", "tasks.undecorated", "nowhere.add")
        ]
    assert not own_file.tasks.keys() & {job.task for job in jobs}
    with Worker(own_file):
        assert [own_file.job(job.id).result(timeout_s=DEADLINE_S) for job in jobs[:2]] == [1, 1]
        for job in jobs[2:]:
            until(lambda job=job: own_file.job(job.id).error, "the job is put off")
    assert {own_file.job(job.id).record.error.code for job in jobs[2:]} == {"unknown_task"}
    assert "tasks.undecorated: SuspiciousOperation" in caplog.text and "cannot import task" in caplog.text
    assert "cannot import task nowhere.add: ImportError" in caplog.text or "ModuleNotFoundError" in caplog.text


def test_a_deferred_task_waits_for_its_time(own_file: DjangoQueue) -> None:
    at = timezone.now() + timedelta(hours=1)
    result = tasks.add.using(run_after=at).enqueue(1)
    assert job_of(result).state is State.SCHEDULED
    assert own_file.job(job_of(result).id).record.scheduled_at == at
    found = tasks.add.get_result(result.id)
    assert (found.task.run_after, found.status) == (at, "READY")


def test_moments_are_naive_where_the_settings_are(own_file: DjangoQueue) -> None:
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Bangkok"):
        at = datetime(2036, 1, 1, 12)
        result = tasks.add.using(run_after=at).enqueue(1)
        found = tasks.add.get_result(result.id)
        assert (found.task.run_after, found) == (at, result)
        assert found.enqueued_at is not None and found.enqueued_at.tzinfo is None
        stored = own_file.job(job_of(result).id).record
        assert stored.scheduled_at == datetime(2036, 1, 1, 5, tzinfo=UTC)
        assert abs(found.enqueued_at - timezone.make_naive(stored.enqueued_at)) < timedelta(milliseconds=1)


def test_the_higher_priority_runs_first(own_file: DjangoQueue, make_gate: Callable[[], Gate]) -> None:
    low, high = tasks.add.using(priority=-100).enqueue(1), tasks.add.using(priority=100).enqueue(2)
    for result in (low, high):
        worked(own_file, result, threads=1)
    assert high.started_at < low.started_at
    assert (low.task.priority, high.task.priority) == (-100, 100)


def test_the_queue_that_a_task_names_exists_through_it(use_queue: UseQueue) -> None:
    gq = use_queue()
    result = tasks.add.using(queue_name="letters").enqueue(1)
    assert (job_of(result).queue, result.task.queue_name) == ("letters", "letters")
    use_queue(names=("default", "mail"))
    assert {"default", "mail"} <= queue().queue_names()
    with pytest.raises(InvalidTask, match="'letters'"):
        tasks.add.using(queue_name="letters")
    assert gq is not queue()


def test_a_task_names_any_queue_where_nothing_says_which_there_are(use_queue: UseQueue) -> None:
    gq = use_queue(names=None)
    made = task(queue_name="letters")(tasks.undecorated)
    assert [job_of(named.enqueue()).queue for named in (made, made.using(queue_name="post"))] == ["letters", "post"]
    assert {"letters", "post"} <= gq.queue_names()


def test_a_queue_that_is_not_among_those_said_is_refused_with_the_way_out(use_queue: UseQueue, tmp_path: Path) -> None:
    for use, place in (
        (lambda: use_queue(names=("letters", "post")), "TASKS['default']['QUEUES']"),
        (lambda: use_queue(names=None, queues={"letters": {}, "post": {}}), "TASKS['default']['OPTIONS']['queues']"),
        (lambda: use_queue(names=None, config=tmp_path / "gpuqueue.toml"), f"{tmp_path / 'gpuqueue.toml'} as [queues.NAME]"),
    ):
        (tmp_path / "gpuqueue.toml").write_text('database = "gpuqueue.db"\n[queues.letters]\n[queues.post]\n')
        use()
        assert tasks.add.using(queue_name="post").queue_name == "post"
        with pytest.raises(InvalidTask) as raised:
            tasks.add.using(queue_name="leters")
        said = str(raised.value)
        assert said.startswith("tests.integrations.django.tasks.add: Queue 'leters' is not valid for backend.")
        assert "letters, post (did you mean 'letters'?); add it to " + place in said


def test_a_result_outlives_a_change_of_the_queues(use_queue: UseQueue) -> None:
    use_queue()
    result = tasks.add.using(queue_name="letters").enqueue(1)
    use_queue(names=("default",))
    assert tasks.add.get_result(result.id).task.queue_name == "letters"


def test_what_json_does_not_know_is_refused_before_anything_is_stored(own_file: DjangoQueue) -> None:
    with pytest.raises(TypeError, match=r"tasks\.add: argument 1 is not JSON: Unsupported type: <class 'datetime.datetime'>"):
        tasks.add.enqueue(datetime.now(UTC))
    with pytest.raises(TypeError, match=r"tasks\.add: argument 'b' is not JSON"):
        tasks.add.enqueue(1, b=[object()])
    with pytest.raises(ValueError, match=r"tasks\.add: argument 'b' is not JSON"):
        tasks.add.enqueue(1, b=b"\xff")
    assert own_file.jobs() == []


@pytest.mark.parametrize(
    ("made", "args", "kwargs", "words"),
    [
        (tasks.add, (1, 2, 3), {}, "too many positional arguments. It takes (a: 'int', b: 'int' = 0)"),
        (tasks.add, (1,), {"bb": 2}, "got an unexpected keyword argument 'bb' (did you mean 'b'?). It takes (a"),
        (tasks.add, (), {}, "missing a required argument: 'a'. It takes (a"),
        (tasks.who, (1,), {}, "too many positional arguments. It takes no arguments"),
    ],
)
def test_arguments_that_a_task_does_not_take_are_refused_before_anything_is_stored(
    own_file: DjangoQueue, made: Any, args: tuple[Any, ...], kwargs: dict[str, Any], words: str
) -> None:
    with pytest.raises(TypeError) as raised:
        made.enqueue(*args, **kwargs)
    assert str(raised.value).startswith(f"{made.module_path}: {words}")
    assert own_file.jobs() == []


@pytest.mark.parametrize("name", ["1", "1-zz", "", "../1-1", "1-1", "9" * 30 + "-1", "0-0"])
def test_what_is_no_results_id_finds_nothing(own_file: DjangoQueue, name: str) -> None:
    tasks.add.enqueue(1)
    with pytest.raises(TaskResultDoesNotExist):
        tasks.add.get_result(name)


def test_a_job_whose_task_is_gone_is_told_so(own_file: DjangoQueue) -> None:
    result = tasks.add.enqueue(1)
    for path, kind in (
        ("tests.integrations.django.nowhere.add", ImportError),
        (f"{tasks.__name__}.undecorated", SuspiciousOperation),
    ):
        own_file.store.engine.writer.run(lambda connection, path=path: connection.execute("UPDATE jobs SET task = ?", (path,)))
        with pytest.raises(kind):
            tasks.add.get_result(result.id)


def test_every_thread_has_the_same_queue_object(own_file: DjangoQueue) -> None:
    found = asyncio.run(asyncio.to_thread(queue))
    assert found is own_file
    assert asyncio.run(asyncio.to_thread(lambda: task_backends["default"])) is not task_backends["default"]


def test_a_backend_of_others_has_no_queue(use_queue: UseQueue) -> None:
    use_queue()
    with (
        override_settings(TASKS={"default": {"BACKEND": DUMMY}}),
        pytest.raises(ConfigurationError, match="DummyBackend"),
    ):
        queue()


# --- failures ---


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("value", "builtins.ValueError"),
        ("own", f"{tasks.__name__}.OddError"),
        ("exit", "builtins.SystemExit"),
        ("interrupt", "builtins.KeyboardInterrupt"),
        ("object", "builtins.TypeError"),
        ("nan", "gpuqueue.domain.errors.PayloadError"),
        ("discard", "gpuqueue.domain.errors.JobFailed"),
    ],
)
def test_a_failure_is_told_with_the_class_of_its_error(own_file: DjangoQueue, kind: str, path: str) -> None:
    result = worked(own_file, tasks.fail.enqueue(kind))
    assert (result.status, result.attempts, len(result.errors)) == ("FAILED", 1, 1)
    assert result.errors[0].exception_class_path == path
    assert issubclass(result.errors[0].exception_class, BaseException)
    assert result.errors[0].traceback.endswith("\n")
    assert result.finished_at is not None
    with pytest.raises(ValueError, match="failed"):
        result.return_value  # noqa: B018


def test_a_result_that_cannot_be_stored_is_not_computed_again(own_file: DjangoQueue) -> None:
    result = worked(own_file, tasks.fail.using(max_attempts=3).enqueue("nan"))
    assert (result.status, result.attempts) == ("FAILED", 1)


def test_each_failed_attempt_is_told_also_of_a_task_that_succeeds_in_the_end(own_file: DjangoQueue) -> None:
    result = tasks.fail_twice.enqueue()
    with Worker(own_file):
        assert job_of(result).result(timeout_s=DEADLINE_S) == "third time lucky"
    result.refresh()
    assert (result.status, result.attempts, result.return_value) == ("SUCCESSFUL", 3, "third time lucky")
    assert [error.exception_class for error in result.errors] == [ConnectionError, ConnectionError]
    assert result.started_at < result.last_attempted_at


def test_a_task_that_waits_for_another_try_is_ready(own_file: DjangoQueue) -> None:
    retried, snoozed = tasks.ask.enqueue("retry"), tasks.ask.enqueue("snooze")
    run_until_idle(own_file, may_wait=True)
    retried.refresh()
    snoozed.refresh()
    assert (retried.status, retried.attempts) == ("READY", 1)
    assert (snoozed.status, snoozed.attempts) == ("READY", 0)
    assert retried.started_at is not None and retried.finished_at is None


def test_a_cancelled_task_has_failed(own_file: DjangoQueue) -> None:
    result = tasks.add.enqueue(1)
    job_of(result).cancel()
    result.refresh()
    assert (result.status, result.attempts) == ("FAILED", 0)
    assert [error.exception_class_path for error in result.errors] == ["gpuqueue.domain.errors.JobCancelled"]


# --- signals ---


@contextmanager
def heard() -> Iterator[list[tuple[str, str, Any]]]:
    """Collect the signals: (name, status of the result then, the error that is being handled)."""
    found: list[tuple[str, str, Any]] = []
    receivers = []
    for name, signal in (("enqueued", task_enqueued), ("started", task_started), ("finished", task_finished)):

        def receive(sender: Any, task_result: Any, name: str = name, **_: Any) -> None:
            assert sender is type(task_backends["default"])
            found.append((name, str(task_result.status), sys.exc_info()[0]))

        signal.connect(receive)
        receivers.append((signal, receive))
    try:
        yield found
    finally:
        for signal, receive in receivers:
            signal.disconnect(receive)


@pytest.mark.parametrize("made", [tasks.add, tasks.add_later])
def test_the_signals_of_a_task_that_succeeds(own_file: DjangoQueue, made: Any) -> None:
    with heard() as signals:
        worked(own_file, made.enqueue(1))
    assert signals == [("enqueued", "READY", None), ("started", "RUNNING", None), ("finished", "SUCCESSFUL", None)]


@pytest.mark.parametrize(
    ("made", "arguments", "kind"), [(tasks.fail, ["value"], ValueError), (tasks.fail_later, [], tasks.OddError)]
)
def test_the_signals_of_a_task_that_fails(own_file: DjangoQueue, made: Any, arguments: list[Any], kind: type) -> None:
    with heard() as signals:
        worked(own_file, made.enqueue(*arguments))
    assert signals == [("enqueued", "READY", None), ("started", "RUNNING", None), ("finished", "FAILED", kind)]


def test_a_task_that_is_tried_again_is_finished_once(own_file: DjangoQueue) -> None:
    with heard() as signals:
        job = job_of(tasks.fail_twice.enqueue())
        with Worker(own_file):
            job.result(timeout_s=DEADLINE_S)
    assert [name for name, *_ in signals] == ["enqueued", "started", "started", "started", "finished"]
    with heard() as signals:
        tasks.ask.using(max_attempts=1).enqueue("snooze")
        run_until_idle(own_file, may_wait=True)
    assert [name for name, *_ in signals] == ["enqueued", "started"]


def test_what_is_cancelled_while_it_runs_is_no_error(
    own_file: DjangoQueue, make_gate: Callable[[], Gate], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = make_gate()
    monkeypatch.setitem(tasks.gates, "cancelled", gate)
    result = tasks.hang.enqueue("cancelled")
    with heard() as signals, Worker(own_file):
        gate.wait_reached()
        job_of(result).cancel()
        with pytest.raises(JobCancelled):
            job_of(result).result(timeout_s=DEADLINE_S)
    assert [name for name, *_ in signals] == ["started"]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    result.refresh()
    assert (result.status, result.errors[0].exception_class_path) == ("FAILED", "gpuqueue.domain.errors.JobCancelled")


def test_a_receiver_that_raises_hurts_no_task(own_file: DjangoQueue, caplog: pytest.LogCaptureFixture) -> None:
    def receive(**_: Any) -> None:
        raise OSError("the receiver is broken")

    for signal in (task_enqueued, task_started, task_finished):
        signal.connect(receive)
    try:
        result = worked(own_file, tasks.add.enqueue(1))
    finally:
        for signal in (task_enqueued, task_started, task_finished):
            signal.disconnect(receive)
    assert result.status == "SUCCESSFUL"
    assert "the receiver is broken" in caplog.text


# --- what a task asks of the GPU ---


def test_what_a_task_asks_for_is_stored_with_its_jobs(use_queue: UseQueue) -> None:
    gq = use_queue()
    record = job_of(tasks.big.enqueue()).record
    assert (record.wanted_bytes, record.priority, record.max_attempts) == (2_000_000_000, 5, 1)
    changed = tasks.big.using(vram="1GB", timeout="5m", max_attempts=4, tags=("night",), priority=7, device="gpu1")
    record = job_of(changed.enqueue()).record
    assert (record.wanted_bytes, record.timeout_s, record.max_attempts) == (1_000_000_000, 300.0, 4)
    assert (record.tags, record.priority, record.wanted_device) == (("night",), 7, "gpu1")
    assert (tasks.big.vram, changed.vram) == ("2GB", "1GB")
    assert gq.tasks["tests.integrations.django.tasks.big"].defaults.vram_bytes == 2_000_000_000


def test_a_wrong_request_is_refused_where_the_task_is_made() -> None:
    with pytest.raises(InvalidTask, match=r"tasks\.add: vram is .*2GX"):
        task(vram="2GX")(tasks.add.func)
    with pytest.raises(InvalidTask, match="isolate=True needs a plain function"):
        task(isolate=True)(tasks.add_later.func)
    for wrong in (
        *({"max_attempts": 0}, {"max_attempts": 2**63}, {"max_attempts": True}, {"timeout": 0}, {"timeout": "soon"}, {"vram": 0}),
        *({"vram": 5}, {"expires_in": -1}, {"tags": "night"}, {"tags": [5]}, {"device": ""}, {"model": 5}, {"model": ""}),
        *({"isolate": "no"}, {"preemptible": 1}, {"retry_on": ""}, {"discard_on": False}, {"backoff": 5}),
    ):
        with pytest.raises(InvalidTask, match=rf"tasks\.add: {next(iter(wrong))} "):
            task(**wrong)(tasks.add.func)
    never = datetime.max.replace(tzinfo=ZoneInfo("America/New_York"))
    with pytest.raises(InvalidTask, match=r"tasks\.add: at is .*: a time must lie in the years"):
        tasks.add.using(run_after=never).enqueue(1, 2)
    for wrong, right in (("vrma", "vram"), ("queue", "queue_name"), ("max_attemps", "max_attempts")):
        with pytest.raises(TypeError, match=rf"unknown option '{wrong}' \(did you mean '{right}'\?\); it takes backend, .*vram"):
            task(**{wrong: "2"})(tasks.add.func)
    immediate = f"{ImmediateBackend.__module__}.{ImmediateBackend.__qualname__}"
    with (
        override_settings(TASKS={"default": {"BACKEND": immediate}}),
        pytest.raises(TypeError, match=r"got 'max_attempts', which TASKS\['default'\] \(ImmediateBackend\) does not take\. Set"),
    ):
        task(max_attempts=3)(tasks.add.func)
    with pytest.raises(TypeError, match="vrma"):
        tasks.add.using(vrma="2GB")
    with pytest.raises(TypeError, match="run_after"):
        task(run_after=timezone.now())(tasks.add.func)


def test_the_decorator_of_django_makes_the_same_tasks_where_it_takes_options() -> None:
    import django

    if django.VERSION >= (6, 1):
        from django.tasks import task as djangos
    elif django.VERSION >= (6, 0):
        pytest.skip("the decorator of Django 6.0 takes no options")
    else:
        from django_tasks import task as djangos
    made = djangos(vram="2GB", model=GEMMA)(tasks.undecorated)
    assert (type(made), made.vram, made.model) == (GPUTask, "2GB", GEMMA)


def test_a_task_with_a_model_reserves_what_that_model_needs_and_leaves_it_unloaded(
    use_queue: UseQueue, ollama_server: OllamaSimulator, until: Callable[..., Any]
) -> None:
    gq = use_queue(
        gpu={"budget": "5GB", "margin": "2GB"},
        ollama={"url": ollama_server.url, "settle": "30ms"},
        models={GEMMA: {"vram": "4.5GB"}},
        queues={"ai": {"gpu": True, "backend": "ollama"}},
    )
    result = tasks.with_model.enqueue()
    with Worker(gq):
        assert job_of(result).result(timeout_s=DEADLINE_S) == "done"
        until(lambda: gq.job(job_of(result).id).record.device is None, "the device is free again")
    record = gq.job(job_of(result).id).record
    assert (record.model, record.demand_bytes) == (GEMMA, 4_500_000_000)


def test_a_task_that_asks_for_more_than_there_is_says_so(use_queue: UseQueue, simulated_card: Any) -> None:
    gq = use_queue(gpu={"budget": "1GB"}, queues={"ai": {"gpu": True}})
    result = tasks.big.using(queue_name="ai").enqueue()
    explained = run_until_idle(gq, may_wait=True)
    assert "2 GB" in str(explained[job_of(result).id])


def test_the_job_behind_a_result_streams_and_waits(own_file: DjangoQueue) -> None:
    result = tasks.fail.enqueue("value")
    with Worker(own_file), pytest.raises(JobFailed, match="too odd"):
        job_of(result).result(timeout_s=DEADLINE_S)
