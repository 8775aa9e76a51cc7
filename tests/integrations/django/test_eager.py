"""The backend for tests: a task has run when `enqueue` returns, inside its caller's transaction, and its result is found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test import override_settings
from django.utils import timezone

from gpuqueue.errors import UsageError
from gpuqueue.integrations.django import EagerBackend, GPUTask, eager, job_of, task
from gpuqueue.integrations.django.tasks_api import InvalidTask, TaskResultDoesNotExist, task_backends
from tests.integrations.django import tasks
from tests.integrations.django.conftest import UseDatabase


@pytest.fixture(autouse=True)
def eager_tasks() -> Iterator[None]:
    with override_settings(TASKS={"default": {"BACKEND": "gpuqueue.integrations.django.EagerBackend", "QUEUES": []}}):
        assert isinstance(task_backends["default"], EagerBackend)
        yield


def test_a_task_has_run_when_enqueue_returns() -> None:
    result = tasks.add.enqueue(1, b=2)
    assert (result.status, result.return_value, result.attempts) == ("SUCCESSFUL", 3, 1)
    assert tasks.add.get_result(result.id) is result
    later = asyncio.run(tasks.add_later.aenqueue(4))
    assert later.return_value == 4
    assert asyncio.run(tasks.add_later.aget_result(later.id)) is later


def test_a_failed_task_is_told_and_not_raised() -> None:
    result = tasks.fail.enqueue("own")
    assert (result.status, result.errors[0].exception_class) == ("FAILED", tasks.OddError)


def test_what_it_writes_belongs_to_the_callers_transaction(use_database: UseDatabase) -> None:
    use_database()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, name TEXT)")
    with pytest.raises(RuntimeError), transaction.atomic():
        assert tasks.write_order.enqueue("first").status == "SUCCESSFUL"
        raise RuntimeError
    with connection.cursor() as cursor:
        assert cursor.execute("SELECT count(*) FROM orders").fetchall() == [(0,)]


def test_it_takes_the_tasks_that_the_real_backend_takes() -> None:
    made = task(vram="2GB", model="gemma4:e4b", queue_name="ai", max_attempts=3)(tasks.add.func)
    assert isinstance(made, GPUTask)
    deferred = made.using(run_after=timezone.now() + timedelta(days=1), priority=7, vram="1GB")
    assert deferred.enqueue(1).return_value == 1
    with pytest.raises(InvalidTask, match="vram"):
        made.using(vram="1GX")


def test_results_are_forgotten_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "KEPT", 2)
    first, second, third = (tasks.add.enqueue(number) for number in range(3))
    with pytest.raises(TaskResultDoesNotExist):
        tasks.add.get_result(first.id)
    assert [tasks.add.get_result(result.id).return_value for result in (second, third)] == [1, 2]


def test_there_is_no_job_behind_its_results() -> None:
    with pytest.raises(UsageError, match="keeps no job"):
        job_of(tasks.add.enqueue(1))
