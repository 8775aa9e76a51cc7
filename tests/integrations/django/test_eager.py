"""The backend for tests: a task has run when `enqueue` returns, inside its caller's transaction, and its job is there."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import RequestFactory, override_settings
from django.utils import timezone

from gpuqueue.integrations.django import EagerBackend, GPUTask, job_of, queue, sse_response, task
from gpuqueue.integrations.django.tasks_api import InvalidTask, task_backends, task_enqueued, task_finished, task_started
from tests.integrations.django import tasks
from tests.integrations.django.conftest import UseDatabase

EAGER = "gpuqueue.integrations.django.EagerBackend"


@pytest.fixture(autouse=True)
def eager_tasks() -> Iterator[None]:
    with override_settings(TASKS={"default": {"BACKEND": EAGER, "QUEUES": []}}):
        assert isinstance(task_backends["default"], EagerBackend)
        yield


def test_a_task_has_run_when_enqueue_returns() -> None:
    result = tasks.add.enqueue(1, b=2)
    assert (result.status, result.return_value, result.attempts) == ("SUCCESSFUL", 3, 1)
    assert tasks.add.get_result(result.id) == result
    assert tasks.add_later.enqueue(4).return_value == 4
    later = asyncio.run(tasks.add_later.aenqueue(4))
    assert later.return_value == 4
    assert asyncio.run(tasks.add_later.aget_result(later.id)) == later
    assert asyncio.run(tasks.who.aenqueue()).return_value["attempt"] == 1


def test_a_failed_task_is_told_and_not_raised() -> None:
    result = tasks.fail.enqueue("own")
    assert (result.status, result.errors[0].exception_class) == ("FAILED", tasks.OddError)
    assert tasks.fail_twice.enqueue().return_value == "third time lucky"
    with pytest.raises(KeyboardInterrupt):
        tasks.fail.enqueue("interrupt")


@pytest.mark.parametrize("made", [tasks.write_order, tasks.write_order_later])
def test_what_it_writes_belongs_to_the_callers_transaction(use_database: UseDatabase, made: Any) -> None:
    use_database()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, name TEXT)")
    with pytest.raises(RuntimeError), transaction.atomic():
        result = made.enqueue("first")
        assert (result.status, result.return_value) == ("SUCCESSFUL", threading.get_ident())
        raise RuntimeError
    with connection.cursor() as cursor:
        assert cursor.execute("SELECT count(*) FROM orders").fetchall() == [(0,)]


def test_a_transaction_that_is_begun_by_hand_goes_on(use_database: UseDatabase) -> None:
    use_database()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, name TEXT)")
        transaction.set_autocommit(False)
        assert tasks.write_order.enqueue("first").status == "SUCCESSFUL"
        assert cursor.execute("SELECT count(*) FROM orders").fetchall() == [(1,)]
        transaction.rollback()
        assert cursor.execute("SELECT count(*) FROM orders").fetchall() == [(0,)]
        transaction.set_autocommit(True)


def test_it_takes_the_tasks_that_the_real_backend_takes() -> None:
    made = task(vram="2GB", model="gemma4:e4b", queue_name="ai", max_attempts=3)(tasks.add.func)
    assert isinstance(made, GPUTask)
    deferred = made.using(run_after=timezone.now() + timedelta(days=1), priority=7, vram="1GB")
    assert deferred.enqueue(1).return_value == 1
    with pytest.raises(InvalidTask, match="vram"):
        made.using(vram="1GX")


def test_it_takes_the_settings_of_the_real_backend(tmp_path: Path, use_database: UseDatabase) -> None:
    use_database(name="x")
    (tmp_path / "gpuqueue.toml").write_text("[queues.mail]\n")
    options = {"database": "default", "config": tmp_path / "gpuqueue.toml"}
    with override_settings(TASKS={"default": {"BACKEND": EAGER, "OPTIONS": options}}):
        result = tasks.add.using(queue_name="mail").enqueue(1)
        assert (job_of(result).queue, result.return_value) == ("mail", 1)
        with pytest.raises(InvalidTask, match="'letters'"):
            tasks.add.using(queue_name="letters")
        queue().task(name="double", queue="mail")(lambda number: 2 * number)
        with transaction.atomic():
            job = queue().enqueue("double", {"number": 2}, connection=connection)
        assert job.result(timeout_s=0) == 4
        assert queue().database.is_relative_to(tempfile.gettempdir()) and queue().database.name == "test_default.db"


def test_a_job_is_behind_its_result_and_can_be_streamed() -> None:
    result = tasks.add.enqueue(1, b=2)
    assert job_of(result).result(timeout_s=0) == 3
    told = b"".join(sse_response(RequestFactory().get("/"), result))
    assert b'event: done\nid: end\ndata: {"result": 3}' in told


def test_the_signals_come_in_their_order() -> None:
    heard: list[tuple[str, str]] = []

    def hear(signal: Any, task_result: Any, **_: Any) -> None:
        heard.append((names[id(signal)], str(task_result.status)))

    signals = {"enqueued": task_enqueued, "started": task_started, "finished": task_finished}
    names = {id(signal): name for name, signal in signals.items()}
    for signal in signals.values():
        signal.connect(hear)
    try:
        tasks.add.enqueue(1)
    finally:
        for signal in signals.values():
            signal.disconnect(hear)
    assert heard == [("enqueued", "READY"), ("started", "RUNNING"), ("finished", "SUCCESSFUL")]


def test_there_is_nothing_for_a_worker() -> None:
    with pytest.raises(CommandError, match="run where they are enqueued"):
        call_command("gpuqueue_worker", "--batch")
    call_command("migrate", stdout=(said := StringIO()))
    assert "gpuqueue:" not in said.getvalue()
