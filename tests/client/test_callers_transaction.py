"""Jobs stored in a transaction of the caller's own: they exist when it commits, and never when it rolls back."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from gpuqueue import GPUQueue, UnknownJob, UnknownQueue, UsageError
from gpuqueue.store.wakeups import Listener
from gpuqueue.testing.waiting import DEADLINE_S


@pytest.fixture
def application(gq):
    """The application's engine: the same file as the queue's, with a table of its own."""
    gq.counts()  # the queue is there before the application's transactions
    engine = create_engine(f"sqlite:///{gq.database}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER PRIMARY KEY, what TEXT)"))
    yield engine
    engine.dispose()


@pytest.fixture
def send(gq):
    @gq.task(name="send", queue="mail")
    def send(order: int) -> int:
        return order * 10

    return send


def order(connection, number: int) -> None:
    connection.execute(text("INSERT INTO orders VALUES (:number, 'a book')"), {"number": number})


def orders(application) -> list[int]:
    with application.connect() as connection:
        return list(connection.scalars(text("SELECT id FROM orders ORDER BY id")))


def test_a_job_runs_once_its_transaction_has_committed_and_not_before(gq, application, send, start_worker):
    start_worker(gq)
    with application.begin() as connection:
        order(connection, 1)
        job = send.using(connection=connection).enqueue(order=1)
        # Another job passes meanwhile on another file's side: the worker looks, and does not see this one.
        with pytest.raises(UnknownJob):
            job.refresh()
        assert gq.counts() == {}
    assert job.result(timeout_s=DEADLINE_S) == 10
    assert orders(application) == [1]


def test_nothing_is_left_of_a_transaction_that_was_rolled_back(gq, application, send, start_worker):
    start_worker(gq)
    with pytest.raises(RuntimeError, match="changed its mind"), application.begin() as connection:
        order(connection, 1)
        gone = send.using(connection=connection).enqueue(order=1)
        gq.enqueue_many([(send, {"order": number}) for number in range(5)], connection=connection)
        raise RuntimeError("changed its mind")
    after = send.enqueue(order=2)
    assert after.result(timeout_s=DEADLINE_S) == 20
    assert [job.id for job in gq.jobs()] == [after.id]
    assert orders(application) == []
    assert gone.id <= after.id  # the number was never anybody's


@pytest.mark.parametrize("use", ["result", "refresh", "logs", "cancel", "retry", "explain", "stream"])
def test_the_handle_of_a_job_that_was_rolled_back_is_never_that_of_the_next_with_its_id(gq, application, send, use):
    with Session(application) as session:
        gone = send.using(connection=session).enqueue(order=1)
        session.rollback()
    other = send.enqueue(order=2)
    assert gone.id == other.id, "SQLite gives the id again"
    with pytest.raises(UnknownJob, match="its transaction was not committed"):
        found = getattr(gone, use)()
        list(found)
    assert other.refresh().state == "available"


def test_a_session_wakes_the_workers_when_its_transaction_has_ended(gq, application, send):
    with Listener(gq.store.runtime_dir, "workers", "a-worker") as wakeups, Session(application) as session:
        order(session, 1)
        send.using(connection=session).enqueue(order=1)
        with session.begin_nested():
            order(session, 2)
        assert not wakeups.wait(0), "nothing is published yet"
        session.commit()
        assert wakeups.wait(DEADLINE_S)
        order(session, 3)
        session.commit()
        assert not wakeups.wait(0), "a transaction without jobs wakes nobody"


def test_a_savepoint_that_is_rolled_back_takes_its_jobs_with_it(gq, application, send):
    with Session(application) as session:
        kept = send.using(connection=session).enqueue(order=1)
        savepoint = session.begin_nested()
        send.using(connection=session).enqueue(order=2)
        savepoint.rollback()
        session.commit()
    assert [job.id for job in gq.jobs()] == [kept.id]


def test_a_session_is_found_behind_its_registry(gq, application, send):
    registry = scoped_session(sessionmaker(application))
    job = send.using(connection=registry).enqueue(order=1)
    registry.commit()
    registry.remove()
    assert job.refresh().state == "available"


def test_options_names_and_large_arguments_go_the_same_way(gq, application, send, start_worker):
    with application.begin() as connection:
        bound = send.using(connection=connection, priority=5)
        later = bound.using(delay="1h").enqueue(order=1)
        by_name = gq.enqueue("send", {"order": 2}, priority=7, connection=connection, tags=["x" * 2000])

        @gq.task(name="measure")
        def measure(content: str) -> int:
            return len(content)

        large = measure.using(connection=connection).enqueue(content="é" * 100_000)
    assert (later.state, later.record.priority) == ("scheduled", 5)
    assert (by_name.record.priority, by_name.record.tags) == (7, ("x" * 2000,))
    start_worker(gq)
    assert large.result(timeout_s=DEADLINE_S) == 100_000
    assert send.enqueue(order=4).result(timeout_s=DEADLINE_S) == 40, "the task itself is bound to no transaction"


def test_what_is_wrong_with_a_job_is_said_before_anything_is_stored(gq, application, send):
    with application.begin() as connection:
        order(connection, 1)
        with pytest.raises(UsageError, match="unknown argument 'ordr'"):
            send.using(connection=connection).enqueue(ordr=1)
        with pytest.raises(UnknownQueue, match="did you mean 'mail'"):
            send.using(connection=connection, queue="mial").enqueue(order=1)
        with pytest.raises(UsageError, match="job 1 of this call"):
            gq.enqueue_many([(send, {"order": 1}), (send, {})], connection=connection)
        order(connection, 2)  # the transaction goes on
    assert orders(application) == [1, 2]
    assert gq.jobs() == []


def test_a_queue_that_only_the_rolled_back_transaction_knew_is_made_again(gq, application):
    @gq.task(name="new", queue="new")
    def new() -> None: ...

    with pytest.raises(RuntimeError), application.begin() as connection:
        new.using(connection=connection).enqueue()
        raise RuntimeError
    assert "new" not in gq.counts()
    new.enqueue()
    assert gq.counts()["new"] == {"available": 1}


def test_a_connection_to_another_database_is_refused_with_both_named(gq, send, tmp_path):
    gq.counts()
    for url, said in (("sqlite://", "in memory"), (f"sqlite:///{tmp_path / 'other.db'}", "other.db")):
        engine = create_engine(url)
        with engine.begin() as connection, pytest.raises(UsageError, match=rf"{said}.*gpuqueue\.db"):
            send.using(connection=connection).enqueue(order=1)
        engine.dispose()


def test_what_is_no_connection_is_refused(gq, send, tmp_path):
    gq.counts()
    with (
        sqlite3.connect(gq.database) as driver,
        pytest.raises(UsageError, match="must be a SQLAlchemy Connection or Session, or Django's connection, not"),
    ):
        send.using(connection=driver).enqueue(order=1)
    driver.close()
    with pytest.raises(UsageError, match="to using\\(\\) or enqueue\\(\\)"):
        gq.task(connection=object())(lambda: None)


def test_a_file_without_a_queue_is_named_instead_of_waited_for(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER PRIMARY KEY, what TEXT)"))
    gq = GPUQueue(tmp_path / "app.db")

    @gq.task(name="send")
    def send() -> None: ...

    with engine.begin() as connection:
        order(connection, 1)  # holds the write lock, so that the queue could not be created now
        with pytest.raises(UsageError, match="has no queue yet; before the transaction, create it with: gpuqueue db upgrade"):
            send.using(connection=connection).enqueue()
    engine.dispose()
    gq.close()


def test_a_transaction_that_meets_a_locked_file_waits_as_its_owner_said(gq, application, send):
    impatient = create_engine(f"sqlite:///{gq.database}", connect_args={"timeout": 0})
    blocker = sqlite3.connect(gq.database, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    try:
        with impatient.connect() as connection, pytest.raises(Exception, match="database is locked"):
            send.using(connection=connection).enqueue(order=1)
    finally:
        blocker.execute("ROLLBACK")
        blocker.close()
        impatient.dispose()
    assert gq.jobs() == []


def test_followers_are_told_of_jobs_that_came_this_way(gq, application, send):
    gq.store.followers.add("mirror")
    with application.begin() as connection:
        job = send.using(connection=connection).enqueue(order=1)
    assert [(found.name, found.job_id) for found in gq.store.followers.take("mirror", limit=200)] == [("job_enqueued", job.id)]


# --- async ---


@pytest.fixture
def run_with(gq):
    """Run a story with an async engine on the queue's own file."""
    gq.counts()

    def run(story):
        async def with_engine():
            engine = create_async_engine(f"sqlite+aiosqlite:///{gq.database}")
            try:
                async with engine.begin() as connection:
                    await connection.execute(text("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, what TEXT)"))
                await story(engine)
            finally:
                await engine.dispose()

        asyncio.run(asyncio.wait_for(with_engine(), DEADLINE_S))

    return run


def test_async_sessions_and_connections_commit_and_roll_back_their_jobs(gq, send, start_worker, run_with):
    start_worker(gq)

    async def story(engine):
        async with AsyncSession(engine) as session:
            await session.execute(text("INSERT INTO orders VALUES (1, 'a book')"))
            job = await send.using(connection=session).aenqueue(order=1)
            assert gq.counts() == {}
            await session.commit()
        assert await job.aresult(timeout_s=DEADLINE_S) == 10
        async with AsyncSession(engine) as session:
            await gq.aenqueue("send", {"order": 2}, connection=session)
            await session.rollback()
        async with engine.begin() as connection:
            jobs = await gq.aenqueue_many([(send, {"order": 3}), (send, {"order": 4})], connection=connection)
        assert [await job.aresult(timeout_s=DEADLINE_S) for job in jobs] == [30, 40]
        assert len(await gq.ajobs()) == 3
        registry = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        job = await send.using(connection=registry).aenqueue(order=5)
        await registry.commit()
        await registry.remove()
        assert await job.aresult(timeout_s=DEADLINE_S) == 50

    run_with(story)


def test_an_async_session_wakes_the_workers_too(gq, send, run_with):
    async def story(engine):
        with Listener(gq.store.runtime_dir, "workers", "a-worker") as wakeups:
            async with AsyncSession(engine) as session:
                await send.using(connection=session).aenqueue(order=1)
                assert not wakeups.wait(0)
                await session.commit()
            assert wakeups.wait(DEADLINE_S)

    run_with(story)


def test_an_async_session_for_a_blocking_call_is_refused_with_the_right_one(gq, send, run_with):
    async def story(engine):
        async with AsyncSession(engine) as session:
            with pytest.raises(UsageError, match="use aenqueue or aenqueue_many"):
                send.using(connection=session).enqueue(order=1)

    run_with(story)


def test_a_plain_session_may_be_used_in_a_coroutine(gq, application, send):
    async def story():
        with Session(application) as session:
            job = await send.using(connection=session).aenqueue(order=1)
            session.commit()
        assert (await job.arefresh()).state == "available"

    asyncio.run(story())


def test_no_listener_is_added_twice_to_a_session(gq, application, send):
    from gpuqueue.client.callers_transaction import _transaction_ended

    with Session(application) as session:
        for number in range(3):
            send.using(connection=session).enqueue(order=number)
        session.commit()
        assert event.contains(session, "after_transaction_end", _transaction_ended)
        assert session.info == {}
