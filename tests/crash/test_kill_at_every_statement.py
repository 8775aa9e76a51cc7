"""Each operation of the store is killed before and after each of its statements: it happened entirely or not at all.

A child process opens a copy of a prepared file, runs one operation, and dies by SIGKILL at one statement. What it leaves
is compared, table by table, with the file before and with the file after the operation; then it is recovered from.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpuqueue.domain.answers import Demand
from gpuqueue.domain.device import Resident
from gpuqueue.domain.job import Lease, NewJob, State
from gpuqueue.domain.outcomes import Completed, Ended, Postponed, Report
from gpuqueue.domain.settings import DeviceSettings, QueueSettings
from gpuqueue.domain.units import from_us
from gpuqueue.domain.view import Pause
from gpuqueue.store import open_store
from gpuqueue.store.sqlite import jobs, migrate
from gpuqueue.store.sqlite.outcomes import abandoned_workers
from gpuqueue.store.store import Store
from gpuqueue.store.tables import metadata
from tests import history
from tests.conftest import fork, forks
from tests.store.rows import BOOM, CARD, GB, NOW_US, Rows, at, capacity_for

pytestmark = forks

LARGE = '{"x": "' + "y" * 3000 + '"}'
DONE = "done"


class Dying:
    """A connection that kills its process at the chosen moment: 2n is before statement n, 2n + 1 after it."""

    def __init__(self, connection: sqlite3.Connection, moment: int | None) -> None:
        self._connection = connection
        self._moment = moment
        self.moments: list[str] = []
        self.rowcount = 0

    def _reach(self, statement: str) -> None:
        if len(self.moments) == self._moment:
            os.kill(os.getpid(), signal.SIGKILL)
        self.moments.append(statement)

    def execute(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        self._reach(statement)
        cursor = self._connection.execute(statement, tuple(values))
        self._reach(statement)
        return cursor

    def executemany(self, statement: str, rows: Iterable[Iterable[Any]]) -> Any:
        counted = Dying(self._connection, None)
        counted.rowcount = sum(max(self.execute(statement, row).rowcount, 0) for row in rows)
        return counted

    @property
    def connection(self) -> Dying:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def __enter__(self) -> None:
        self._connection.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._connection.__exit__(*error)


@dataclass
class Scene:
    """A prepared file, opened: three running jobs, a reservation to clean up, and jobs in every other state."""

    rows: Rows
    store: Store

    def lease(self, job_id: int) -> Lease:
        job = self.rows.job(job_id)
        return Lease(job_id, job.lease, job.queue, job.task, job.attempt, job.max_attempts, {}, None, from_us(NOW_US))


AVAILABLE, DUE, EXPIRING, DISCARDED, CANCELLED, RUNNING, ASKED, CLEANING, PLACED, SIZED, UNSIZED, LARGE_JOB, SNOOZED, OLD = range(
    1, 15
)
WIDE = DeviceSettings("gpu1", budget_bytes=9 * 10**9, slots=9, max_models=9)


def prepare(path: Path) -> None:
    """Make the file that every operation begins with; the constants above are its jobs' ids."""
    store = open_store(path)
    store.followers.add("history")
    rows = Rows(store)
    rows.queue("work")
    rows.queue("ai", gpu=True)
    rows.queue("setup")
    for job_id in range(1, OLD + 1):
        gpu = job_id in (CLEANING, PLACED, SIZED, UNSIZED)
        options: dict[str, Any] = {"max_attempts": 3}
        if job_id == DUE:
            options["due_s"] = 4
        if job_id == EXPIRING:
            options["expires_s"] = 4
        if job_id == LARGE_JOB:
            options["arguments"] = LARGE
        if gpu and job_id != UNSIZED:
            assert rows.enqueue_sized("ai", 1, "m", **options) == job_id
        elif gpu:
            assert rows.enqueue("ai", **options) == job_id
        else:
            setup = job_id in (DISCARDED, CANCELLED, RUNNING, ASKED, SNOOZED, OLD)
            assert rows.enqueue("setup" if setup else "work", **options) == job_id
    for lease in rows.claim("setup"):
        if lease.job_id == DISCARDED:
            rows.end(lease, s=1)
        elif lease.job_id == CANCELLED:
            rows.end(lease, State.CANCELLED, s=1)
        elif lease.job_id == SNOOZED:
            rows.postpone(lease, "snoozed", waiting_for="ollama", due_s=900, s=1)
        elif lease.job_id == OLD:
            rows.store.attempts.report([Report(OLD, lease.lease, "text")])
            rows.complete(lease, LARGE, s=1)
    rows.store.jobs.cancel(ASKED, now_us=at(1))
    rows.complete(rows.placed(CLEANING, device=WIDE), s=1)
    rows.placed(PLACED, device=WIDE)
    rows.enqueue("work", priority=-9)
    suspected = f"UPDATE jobs SET demand_class = {jobs.SUSPECT} WHERE id = {RUNNING}"
    store.engine.writer.run(lambda connection: connection.execute(suspected))
    with store.engine.lent() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()


def work_queues(scene: Scene) -> dict[str, Any]:
    return {
        "worker_id": "w",
        "queues": [scene.rows.queues["work"]],
        "rules": scene.rows.rules(),
        "capacity": capacity_for(9),
        "now_us": at(5),
    }


def new(arguments: str) -> NewJob:
    return NewJob("work", "app.task", arguments, at(5))


Operation = Callable[[Scene], object]
OPERATIONS: dict[str, Operation] = {
    "enqueue": lambda scene: scene.store.jobs.enqueue(new("{}")),
    "enqueue a large one": lambda scene: scene.store.jobs.enqueue(new(LARGE)),
    "enqueue many": lambda scene: scene.store.jobs.enqueue_many([new("{}"), new(LARGE), new("{}")]),
    "claim": lambda scene: scene.store.attempts.finish_and_claim((), **work_queues(scene)),
    "claim for a device": lambda scene: scene.rows.placed(SIZED, s=5),
    "complete": lambda scene: scene.rows.complete(scene.lease(RUNNING), s=5),
    "complete with a large result": lambda scene: scene.rows.complete(scene.lease(RUNNING), LARGE, s=5),
    "fail and retry later": lambda scene: scene.rows.postpone(scene.lease(RUNNING), error=BOOM, s=5),
    "snooze": lambda scene: scene.rows.postpone(scene.lease(RUNNING), "snoozed", waiting_for="ollama", s=5),
    "give back": lambda scene: scene.rows.postpone(scene.lease(RUNNING), "released", due_s=5, s=5),
    "discard": lambda scene: scene.rows.end(scene.lease(RUNNING), s=5),
    "cancel while it runs": lambda scene: scene.rows.postpone(scene.lease(ASKED), s=5),
    "finish several and claim": lambda scene: scene.store.attempts.finish_and_claim(
        [
            Completed(scene.lease(RUNNING), LARGE),
            Ended(scene.lease(ASKED), State.CANCELLED, BOOM),
            Postponed(scene.lease(PLACED), "retried", at(50), BOOM),
        ],
        **work_queues(scene),
    ),
    "release a device": lambda scene: scene.store.attempts.release_device(CLEANING, scene.rows.job(CLEANING).lease),
    "rescue": lambda scene: scene.rows.rescue(executing=[RUNNING, PLACED], s=5),
    "rescue at the last crash": lambda scene: scene.rows.rescue(executing=[RUNNING, PLACED], s=5, max_crashes=1),
    "crash": lambda scene: scene.rows.crash(scene.lease(RUNNING), s=5),
    "crash for the last time": lambda scene: scene.rows.crash(scene.lease(RUNNING), last=True, s=5),
    "cancel a waiting job": lambda scene: scene.store.jobs.cancel(AVAILABLE, now_us=at(5)),
    "cancel a running job": lambda scene: scene.store.jobs.cancel(RUNNING, now_us=at(5)),
    "retry": lambda scene: scene.store.jobs.retry(DISCARDED, now_us=at(5)),
    "retry what failed": lambda scene: scene.store.jobs.retry_failed(None, now_us=at(5)),
    "cancel all of a queue": lambda scene: scene.store.jobs.cancel_all("setup", now_us=at(5)),
    "move what is due": lambda scene: scene.store.jobs.move_due(now_us=at(5)),
    "refuse a queue": lambda scene: scene.store.jobs.refuse_waiting("work", message="away", now_us=at(5)),
    "refuse a job": lambda scene: scene.store.jobs.refuse_one(AVAILABLE, message="away", now_us=at(5)),
    "promote what waited for a backend": lambda scene: scene.store.engine.writer.run(
        lambda connection: jobs.promote_waiting_for(connection, "ollama")
    ),
    "extend": lambda scene: scene.store.workers.extend("w", expires_at_us=at(99)),
    "pause": lambda scene: scene.store.queues.pause("work", Pause("me", "why", from_us(at(5)), None)),
    "resume": lambda scene: scene.store.queues.resume("work", by="me", now_us=at(5)),
    "prune": lambda scene: scene.store.jobs.prune(State.COMPLETED, before_us=at(5), limit=1000),
    "report": lambda scene: scene.store.attempts.report(
        [
            Report(RUNNING, scene.rows.job(RUNNING).lease, "a", [(at(3), "line")], (0.5, "half")),
            Report(ASKED, 1, "b"),
            Report(RUNNING, 1, "c"),
        ]
    ),
    "accept a configuration": lambda scene: scene.store.workers.accept_configuration(
        digest="new", settings={"queues": {"one": {}, "two": {}}}, force=True, now_us=at(5)
    ),
    "set demands": lambda scene: scene.store.jobs.set_demands(
        [(UNSIZED, Demand(5, "n")), (SIZED, Demand(10**12))], largest_bytes=9
    ),
    "register a worker": lambda scene: scene.rows.register("other"),
    "follow a clock that was set back": lambda scene: scene.store.upkeep.set_back(now_us=at(-1)),
    "unregister a worker": lambda scene: scene.store.workers.unregister("w", now_us=at(5)),
    "lose a backend": lambda scene: scene.store.backends.lost("ollama", error="gone", probe_every_s=1, longest_s=9, now_us=at(5)),
    "hear of a backend": lambda scene: [
        scene.store.backends.lost("ollama", error="gone", probe_every_s=1, longest_s=9, now_us=at(5)),
        scene.store.backends.answered("ollama", worked=True, now_us=at(6)),
    ],
    "publish a reading": lambda scene: scene.store.backends.publish_reading(
        "gpu0", reading=None, residents=(Resident("m", 1, 1),), now_us=at(5)
    ),
    "follow": lambda scene: scene.store.followers.add("other"),
    "stop following": lambda scene: scene.store.followers.remove("history"),
    "take events": lambda scene: scene.store.followers.take("history", limit=3),
    "prune events": lambda scene: [
        scene.store.followers.take("history", limit=9),
        scene.store.followers.prune(before_us=at(5), limit=5000),
    ],
}
SEVERAL_TRANSACTIONS = {"hear of a backend", "prune events"}
NO_LONGER_FOLLOWED = {"stop following", "take events", "prune events"}


@contextmanager
def opened(path: Path) -> Iterator[Scene]:
    store = open_store(path)
    rows = Rows.__new__(Rows)
    rows.store, rows.queues, rows.worker, rows._registered = store, {}, "w", {"w"}
    rows.queues = {name: QueueSettings(name, gpu=name == "ai") for name in ("work", "ai", "setup")}
    try:
        yield Scene(rows, store)
    finally:
        store.close()


def in_child(work: Callable[[], str]) -> str | None:
    """Run the work in a forked process; returns its answer, or None when it was killed."""
    receiving, sending = os.pipe()
    pid = fork()
    if pid == 0:
        code = 1
        try:
            os.close(receiving)
            os.write(sending, work().encode())
            code = 0
        finally:
            os._exit(code)
    os.close(sending)
    with os.fdopen(receiving) as answer:
        text = answer.read()
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0, "the operation itself failed"
    return text


def run_and_die(path: Path, operation: Operation, moment: int | None) -> list[str] | None:
    """Run an operation in a child that dies at the moment; returns its statements when it lived."""

    def work() -> str:
        with opened(path) as scene:
            writer = scene.store.engine.writer
            writer.cursor = dying = Dying((writer.cursor or writer._open()).connection, moment)  # type: ignore[assignment]
            operation(scene)
            return "\n".join(statement[:40] for statement in dying.moments)

    answer = in_child(work)
    return None if answer is None else answer.split("\n")


def copy(prepared: Path, path: Path) -> None:
    """Put the prepared file at the path, where no trace of a former one is left."""
    for end in ("", "-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    shutil.copy(prepared, path)


def contents(path: Path) -> dict[str, list[Any]]:
    """All rows of all tables; the time of an event and what is counted to it are left out, because a trigger reads the clock."""
    with opened(path) as scene, scene.store.engine.lent() as connection:
        found = {
            table: connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in (*metadata.tables, "sqlite_master")
            if table != "events"
        }
        told = "SELECT id, name, job_id, queue, json_remove(data, '$.ran_s') FROM events ORDER BY id"
        found["events"] = connection.execute(told).fetchall()
        return found


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "jobs.db"
    assert in_child(lambda: [prepare(path), DONE][1]) == DONE
    return path


def recover_and_finish(path: Path, *, followed: bool) -> None:
    """Rescue what the dead worker held, clean up, run everything that is left, and check the whole history."""
    with opened(path) as scene:
        store, rows = scene.store, scene.rows
        with store.engine.lent() as connection:
            history.check_rows(connection)
        with store.engine.lent() as connection:
            gone = abandoned_workers(connection)
        for dead in ("w", "other", *gone):
            for orphan in rows.rescue(dead, by="survivor", executing=[], s=10):
                assert store.attempts.release_device(orphan.job_id, orphan.lease)
        assert rows.one("SELECT count(*) FROM jobs WHERE state = 'running' OR device IS NOT NULL") == 0
        store.queues.resume("work", by="me", now_us=at(10))
        waiting = rows.one("SELECT count(*) FROM jobs WHERE finished_at IS NULL")
        s, done = 10_000, 0
        store.jobs.move_due(now_us=at(s))
        suspects = [*rows.suspects("work"), *rows.suspects("setup")]
        for lease in rows.claim("work", "setup", s=s, worker="survivor", suspects=suspects):
            assert rows.complete(lease, s=s)
            done += 1
        with store.engine.lent() as connection:
            placeable = [row[0] for row in connection.execute("SELECT id FROM jobs WHERE state = 'available' AND queue = 'ai'")]
        store.jobs.set_demands([(job_id, Demand(GB, "")) for job_id in placeable], largest_bytes=CARD.budget_bytes)
        for job_id in placeable:
            lease = rows.placed(job_id, gb=1, s=s, worker="survivor")
            assert rows.complete(lease, s=s)
            assert store.attempts.release_device(job_id, lease.lease)
            done += 1
        expired = rows.one("SELECT count(*) FROM jobs WHERE state = 'discarded' AND finished_at = ?", at(s))
        assert done + expired == waiting, "a job was lost"
        assert rows.one("SELECT count(*) FROM jobs WHERE finished_at IS NULL") == 0
        with store.engine.lent() as connection:
            history.check_rows(connection)
            if followed:
                history.check(history.events_of(connection), connection, devices=[CARD, WIDE], retried={DISCARDED: 1})


@pytest.mark.sampled(14)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_killed_at_any_statement_happened_entirely_or_not_at_all(name: str, prepared: Path, tmp_path: Path) -> None:
    operation = OPERATIONS[name]
    path = tmp_path / "jobs.db"
    copy(prepared, path)
    before = contents(path)
    statements = run_and_die(path, operation, None)
    assert statements
    after = contents(path)
    ends = [number for number, statement in enumerate(statements) if statement == "COMMIT"][1::2] or [len(statements) - 1]
    assert len(ends) == (2 if name in SEVERAL_TRANSACTIONS else 1), "an operation is one transaction"
    recovered = set()
    for moment in range(len(statements)):
        copy(prepared, path)
        assert run_and_die(path, operation, moment) is None
        found = contents(path)
        if moment >= ends[-1]:
            assert found == after, f"a part was lost after {statements[moment]}"
        elif moment < ends[0]:
            assert found == before, f"a part stayed of {statements[moment]}"
        outcome = sum(moment >= end for end in ends)
        if outcome not in recovered:  # equal contents recover alike
            recovered.add(outcome)
            recover_and_finish(path, followed=name not in NO_LONGER_FOLLOWED)
    assert recovered == set(range(len(ends) + 1))


def test_the_creation_of_a_file_killed_at_any_statement_leaves_one_that_the_next_opening_completes(tmp_path: Path) -> None:
    import alembic.command  # noqa: F401 - loaded here once, not in every child
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def create(path: Path, moment: int | None) -> list[str] | None:
        def work() -> str:
            begun: list[str] = []

            def reach(statement: str) -> None:
                if len(begun) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                begun.append(" ".join(statement.split())[:60])

            @event.listens_for(Engine, "connect", insert=True)
            def trace(connection: sqlite3.Connection, _record: Any) -> None:
                connection.set_trace_callback(reach)

            open_store(path).close()
            return "\n".join(begun)

        answer = in_child(work)
        return None if answer is None else answer.split("\n")

    whole = tmp_path / "whole.db"
    statements = create(whole, None)
    assert statements is not None
    assert sum(statement.startswith("CREATE TABLE") for statement in statements) > len(metadata.tables)
    expected = contents(whole)
    for moment in range(len(statements)):
        path = tmp_path / f"{moment}.db"
        assert create(path, moment) is None
        with sqlite3.connect(path) as connection:
            names = migrate.table_names(connection) - {"sqlite_sequence"}
        connection.close()
        assert names in (set(), {*metadata.tables, migrate.VERSION_TABLE}), f"half a schema after {statements[moment]}"
        assert contents(path) == expected
        with opened(path) as scene:
            assert scene.rows.enqueue() == 1
