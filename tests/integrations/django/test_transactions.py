"""A job and a transaction of Django's: it comes with the commit, is gone with the rollback, and nobody waits for himself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection, connections, transaction
from django.test import override_settings

from gpuqueue import UsageError, Worker
from gpuqueue.domain.errors import UnknownJob
from gpuqueue.integrations.django import DjangoQueue, job_of
from gpuqueue.integrations.django.sqlite3.line import line_for
from gpuqueue.integrations.django.tasks_api import TaskResultDoesNotExist
from gpuqueue.store.wakeups import Listener
from gpuqueue.testing import run_until_idle
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import forks
from tests.integrations.django import tasks
from tests.integrations.django.conftest import OURS, UseDatabase, UseQueue, prepared
from tests.processes import Child

DJANGOS = "django.db.backends.sqlite3"
ENGINES = [(OURS, {}), (DJANGOS, {"transaction_mode": "IMMEDIATE"})]


class Refused(Exception):
    pass


def order(name: str = "first") -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO orders (name) VALUES (%s)", [name])


def orders() -> list[str]:
    with connection.cursor() as cursor:
        return [name for (name,) in cursor.execute("SELECT name FROM orders ORDER BY id").fetchall()]


@pytest.fixture(params=ENGINES, ids=["ours", "djangos"])
def shared(request: pytest.FixtureRequest, use_database: UseDatabase, use_queue: UseQueue) -> DjangoQueue:
    """The queue in the app's file, with each ENGINE."""
    engine, options = request.param
    use_database(engine, **options)
    return prepared(use_queue(database="default"))


def test_a_job_exists_once_its_transaction_is_committed(shared: DjangoQueue) -> None:
    with transaction.atomic():
        order()
        result = tasks.add.enqueue(1, b=2)
        assert shared.jobs() == []
    (job,) = shared.jobs()
    assert (job.id, job.enqueued_at) == (job_of(result).id, result.enqueued_at)
    run_until_idle(shared)
    result.refresh()
    assert (result.status, result.return_value, orders()) == ("SUCCESSFUL", 3, ["first"])


def test_a_job_never_exists_when_its_transaction_is_rolled_back(shared: DjangoQueue) -> None:
    with pytest.raises(Refused), transaction.atomic():
        order()
        result = tasks.add.enqueue(1)
        raise Refused
    assert (shared.jobs(), orders()) == ([], [])
    with pytest.raises(TaskResultDoesNotExist):
        tasks.add.get_result(result.id)
    other = tasks.add.enqueue(2)
    assert job_of(other).id == int(result.id.partition("-")[0]), "SQLite gives the id again"
    with pytest.raises(TaskResultDoesNotExist):
        tasks.add.get_result(result.id)
    with pytest.raises(UnknownJob):
        job_of(result).result(timeout_s=1)


def test_a_savepoint_takes_its_own_jobs_along(shared: DjangoQueue) -> None:
    with transaction.atomic():
        kept = tasks.add.enqueue(1)
        with pytest.raises(Refused), transaction.atomic():
            tasks.add.enqueue(2)
            raise Refused
        order()
    assert [job.id for job in shared.jobs()] == [job_of(kept).id]


def test_a_result_can_be_read_in_the_transaction_that_enqueued_it(shared: DjangoQueue) -> None:
    with transaction.atomic():
        result = tasks.add.enqueue(1)
        assert tasks.add.get_result(result.id) == result


def test_workers_are_woken_after_the_commit_and_not_before(shared: DjangoQueue) -> None:
    with Listener(shared.store.runtime_dir, "workers", "a-test") as listener:
        with pytest.raises(Refused), transaction.atomic():
            tasks.add.enqueue(1)
            raise Refused
        with transaction.atomic():
            tasks.add.enqueue(1)
            assert not listener.wait(0.05)
        assert listener.wait(DEADLINE_S)


def test_what_is_enqueued_outside_of_a_transaction_is_stored_at_once(shared: DjangoQueue) -> None:
    tasks.add.enqueue(1)
    assert len(shared.jobs()) == 1


def test_arguments_too_large_for_the_row_belong_to_the_transaction_too(shared: DjangoQueue) -> None:
    with transaction.atomic():
        kept = tasks.fail.enqueue("x" * 100_000)
    with pytest.raises(Refused), transaction.atomic():
        tasks.fail.enqueue("y" * 100_000)
        raise Refused
    assert tasks.fail.get_result(kept.id).args == ["x" * 100_000]
    with shared.store.engine.lent() as reading:
        assert reading.execute("SELECT count(*) FROM payloads").fetchone() == (1,)


def test_djangos_record_of_its_statements_takes_them(shared: DjangoQueue) -> None:
    with override_settings(DEBUG=True), transaction.atomic():
        result = tasks.add.enqueue(1)
    assert any("INSERT INTO jobs" in query["sql"] for query in connection.queries)
    assert tasks.add.get_result(result.id) == result


def test_a_job_of_gpuqueues_own_takes_djangos_connection(shared: DjangoQueue) -> None:
    @shared.task(name="own")
    def own() -> str:
        return "ran"

    with pytest.raises(Refused), transaction.atomic():
        shared.enqueue("own", connection=connection)
        raise Refused
    with transaction.atomic():
        job = own.using(connection=connections["default"]).enqueue()
        more = shared.enqueue_many([(own, {}), ("own", {})], connection=connection)
    assert [job.id, *(other.id for other in more)] == [1, 2, 3]
    with Worker(shared):
        assert job.result(timeout_s=DEADLINE_S) == "ran"
    assert shared.enqueue("own", connection=connection).id == 4, "without a transaction it has one of its own"
    assert len(shared.jobs()) == 4


def test_a_transaction_that_is_managed_by_hand_is_the_callers_too(shared: DjangoQueue) -> None:
    transaction.set_autocommit(False)
    try:
        order()
        tasks.add.enqueue(1)
        transaction.rollback()
        assert (shared.jobs(), orders()) == ([], [])
        order("second")
        kept = tasks.add.enqueue(2)
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert ([job.id for job in shared.jobs()], orders()) == ([job_of(kept).id], ["second"])


def test_a_queue_in_a_file_of_its_own_keeps_the_job_whatever_becomes_of_the_transaction(
    use_database: UseDatabase, own_file: DjangoQueue
) -> None:
    use_database()
    prepared(own_file)
    with pytest.raises(Refused), transaction.atomic():
        order()
        tasks.add.enqueue(1)
        raise Refused
    assert len(own_file.jobs()) == 1


def test_a_configuration_that_names_the_apps_file_is_the_same_as_naming_the_database(
    use_database: UseDatabase, use_queue: UseQueue, tmp_path: Path
) -> None:
    use_database()
    gq = prepared(use_queue(file=tmp_path / "app.db"))
    assert gq.database_alias == "default"
    with pytest.raises(Refused), transaction.atomic():
        order()
        tasks.add.enqueue(1)
        raise Refused
    assert gq.jobs() == []


def test_a_task_in_a_worker_writes_and_enqueues_in_one_transaction(shared: DjangoQueue) -> None:
    @shared.task(name="confirm")
    def confirm(name: str) -> int:
        with transaction.atomic():
            order(name)
            return job_of(tasks.write_order.enqueue("confirmed")).id

    with Worker(shared):
        first = confirm.enqueue(name="ordered")
        second = shared.job(first.result(timeout_s=DEADLINE_S))
        second.result(timeout_s=DEADLINE_S)
    assert orders() == ["ordered", "confirmed"]


# --- what would wait for itself ---


def test_a_second_connection_of_gpuqueues_raises_at_once_in_a_transaction(shared: DjangoQueue) -> None:
    shared.task(name="own")(lambda: None)
    first = shared.enqueue("own")  # the queue is known to exist from here on
    with transaction.atomic():
        order()
        for call in (
            lambda: shared.enqueue("own"),
            lambda: shared.enqueue_many([("own", {})]),
            lambda: shared.pause("default"),
            lambda: shared.store.queues.ensure("other"),
        ):
            with pytest.raises(UsageError, match="Django's connection 'default' has an open transaction") as raised:
                call()
            assert "after the commit" in str(raised.value)
        assert [job.id for job in shared.jobs()] == [first.id], "reading is no harm"
    assert orders() == ["first"]
    assert shared.enqueue("own").id == first.id + 1


def test_a_transaction_that_only_reads_is_in_nobodys_way(use_database: UseDatabase, use_queue: UseQueue) -> None:
    use_database(DJANGOS)
    gq = prepared(use_queue(database="default"))
    gq.task(name="own")(lambda: None)
    with transaction.atomic():
        assert orders() == []
        assert gq.enqueue("own").id == 1


def test_a_second_connection_does_not_stand_in_line_behind_who_waits_for_the_first(
    use_database: UseDatabase, use_queue: UseQueue, until: Callable[..., Any]
) -> None:
    use_database()
    prepared(use_queue(database="default"))
    use_database(alias="other")
    line = line_for(os.path.realpath(connection.settings_dict["NAME"]))

    def wait_for_the_first() -> None:
        order("second")
        connection.close()

    waiting = threading.Thread(target=wait_for_the_first)
    with transaction.atomic():
        order()
        waiting.start()
        until(lambda: line._turns.last[1].locked(), "the other thread waits")
        with pytest.raises(OperationalError, match="Django's connection 'default'"), transaction.atomic(using="other"):
            pass
        assert waiting.is_alive()
    waiting.join(DEADLINE_S)
    assert orders() == ["first", "second"]


def test_another_thread_waits_for_the_transaction_and_is_not_refused(shared: DjangoQueue) -> None:
    shared.task(name="own")(lambda: None)
    stored = threading.Thread(target=shared.enqueue, args=["own"])
    with transaction.atomic():
        order()
        stored.start()
        stored.join(0.05)
        assert stored.is_alive()
    stored.join(DEADLINE_S)
    assert len(shared.jobs()) == 1


def test_a_second_connection_of_djangos_raises_at_once_too(use_database: UseDatabase, use_queue: UseQueue) -> None:
    use_database()
    prepared(use_queue(database="default"))
    use_database(alias="other")
    with transaction.atomic():
        order()
        with (
            pytest.raises(OperationalError, match="Django's connection 'default' is in a transaction"),
            transaction.atomic(using="other"),
        ):
            pass
    with transaction.atomic(using="other"):
        pass
    assert orders() == ["first"]


# --- what is no place for a job ---


def test_a_connection_to_another_file_is_refused(use_database: UseDatabase, own_file: DjangoQueue) -> None:
    use_database()
    prepared(own_file)
    own_file.task(name="own")(lambda: None)
    with transaction.atomic(), pytest.raises(UsageError, match=r"app\.db, but this queue is in .*gpuqueue\.db"):
        own_file.enqueue("own", connection=connection)


def test_a_database_without_a_queue_says_how_to_make_one(use_database: UseDatabase, use_queue: UseQueue) -> None:
    use_database()
    gq = use_queue(database="default")
    with transaction.atomic(), pytest.raises(UsageError, match=r"manage\.py migrate"):
        tasks.add.enqueue(1)
    with transaction.atomic(), pytest.raises(UsageError, match="Django's connection 'default' has an open transaction"):
        gq.counts()
    gq.counts()
    with transaction.atomic():
        tasks.add.enqueue(1)


def test_an_async_view_enqueues_in_the_transaction_of_its_thread(shared: DjangoQueue) -> None:
    async def view() -> Any:
        return await tasks.add.aenqueue(1)

    with transaction.atomic():
        result = async_to_sync(view)()
        assert shared.jobs() == []
    assert tasks.add.get_result(result.id) == result


@forks
@pytest.mark.parametrize("within", [False, True], ids=["by itself", "in the transaction"])
def test_a_child_that_was_born_inside_a_transaction_is_told_whose_it_is(shared: DjangoQueue, within: bool) -> None:
    own = shared.task(name="own")(lambda: None)
    with transaction.atomic():
        order()
        told = Child(own.using(connection=connection).enqueue if within else own.enqueue).told()
    assert told.startswith("ForkedWithOpenFile: ")
    assert "it was forked while Django's connection 'default' had it open" in told
    assert orders() == ["first"]
