"""Every hot statement uses its index, sorts nothing, and never walks through all the jobs."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuqueue.domain.answers import Demand
from gpuqueue.domain.job import FINISHED, State
from gpuqueue.domain.outcomes import Completed, Report
from gpuqueue.store import open_store
from gpuqueue.store.sqlite import claims, current, following, jobs, outcomes, queries
from tests.store.rows import Rows, at, capacity_for

# statement → the index it must use; "key" is the primary key.
STATEMENTS = {
    claims.HEADS: "jobs_claim",
    claims.SUSPECTS: "jobs_claim",
    claims.SUSPECT_JOB: "key",
    claims.RUNNING_SUSPECTS: "jobs_running",
    claims.IS_SUSPECT_NOW: "key",
    claims.PASS: "key",
    claims.TAKE: "key",
    claims.TAKE_PLAIN: "key",
    claims.TAKE_DEVICE: "key",
    claims.RUNNING_COUNT: "jobs_running",
    claims.IS_RUNNING: "jobs_running",
    claims.IS_WAITING: "jobs_claim",
    claims.NEXT_CLASS: "jobs_claim",
    claims.CLASS_HEAD: "jobs_claim",
    claims.OF_CLASS: "jobs_claim",
    claims.UNSIZED: "jobs_claim",
    claims.AS_PLACED: "key",
    claims.RESERVED: "jobs_reserved",
    jobs.RETRY: "key",
    jobs.CANCEL: "key",
    jobs.EXPIRE: "key",
    jobs.REFUSE: "key",
    jobs.PROMOTE: "jobs_due",
    jobs.WAKE: "jobs_waiting_for",
    jobs.UNSIZE: "key",
    jobs.UNSIZE_RUNNING: "jobs_running",
    jobs.PRUNABLE: "jobs_finished",
    jobs.ASK_TO_STOP: "key",
    outcomes.COMPLETE: "key",
    **dict.fromkeys(outcomes.FINISH.values(), "key"),
    outcomes.RETRY_LATER: "key",
    outcomes.RETRY_AT_ONCE: "key",
    outcomes.SNOOZE: "key",
    outcomes.SNOOZE_OVER: "key",
    **dict.fromkeys(outcomes.GIVE_BACK.values(), "key"),
    **dict.fromkeys(outcomes.RESCUE.values(), "key"),
    outcomes.CRASH: "key",
    outcomes.CRASH_DISCARDED: "key",
    outcomes.CAME_BACK: "key",
    outcomes.PREEMPTED: "key",
    jobs.DEMAND_CLASS: "key",
    jobs.SUSPECT_AGAIN: "key",
    outcomes.NOTE_OUTPUT: "key",
    outcomes.NOTE_UNLOADED: "key",
    outcomes.RESERVATIONS: "jobs_reserved",
    outcomes.RUNNING_OF: "jobs_running",
    queries.RESULT: "key",
    queries.FIRST_AHEAD: "jobs_claim",
    queries.EARLIER_AHEAD: "jobs_claim",
    queries.SIZE_OF_CLASS: "jobs_claim",
    queries.LAST_WAITING: "jobs_claim",
    current.RUNNING: "jobs_running",
    current.FIRST_WAITING: "jobs_claim",
    current.NEXT_DUE: "jobs_due",
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """A file with jobs in every state, many of them finished, so that a scan would be the wrong plan."""
    store = open_store(tmp_path_factory.mktemp("plans") / "jobs.db")
    rows = Rows(store)
    rows.queue("ai", gpu=True)
    for number in range(40):
        rows.enqueue(priority=number % 3, expires_s=1e5 if number % 5 == 0 else 1e6, max_attempts=2)
    for number, lease in enumerate(rows.claim("work", limit=30)):
        if number % 3 == 0:
            rows.complete(lease)
        elif number % 3 == 1:
            rows.postpone(lease, "snoozed", waiting_for="ollama", due_s=900)
    for number in range(6):
        rows.enqueue_sized("ai", 1 + number % 3, "m")
    rows.placed(rows.enqueue_sized("ai", 1, "m", priority=1))
    rows.enqueue(due_s=50)
    return rows


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?"))]


def assert_good(lines: list[str], statement: str, index: str | None = None) -> None:
    text = f"{statement}\n  " + "\n  ".join(lines)
    assert not any("TEMP B-TREE" in line for line in lines), f"sorts: {text}"
    assert not any(re.fullmatch(r"SCAN jobs", line) for line in lines), f"walks through all the jobs: {text}"
    if index == "key":
        assert any("USING INTEGER PRIMARY KEY" in line for line in lines), text
    elif index is not None:
        assert any(re.search(rf"USING (COVERING )?INDEX {index}\b", line) for line in lines), text


@pytest.mark.parametrize(("statement", "index"), STATEMENTS.items(), ids=[text[:40] for text in STATEMENTS])
def test_a_hot_statement_uses_its_index(filled: Rows, statement: str, index: str) -> None:
    with filled.store.engine.lent() as connection:
        assert_good(plan(connection, statement), statement, index)


def test_every_statement_that_the_modules_name_is_among_them() -> None:
    named = {
        value
        for module in (claims, following, current, outcomes, queries, jobs)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and re.match(r"(SELECT|UPDATE|DELETE) ", value) and " jobs" in value
    }
    assert named <= set(STATEMENTS), named - set(STATEMENTS)


class Seen:
    """A connection that notes the plans of what passes through it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.plans: dict[str, list[str]] = {}

    def _note(self, statement: str) -> None:
        if re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT)", statement) and statement not in self.plans:
            self.plans[statement] = plan(self._connection, statement)

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        self._note(statement)
        return self._connection.execute(statement, *values)  # type: ignore[arg-type]

    def executemany(self, statement: str, values: object) -> sqlite3.Cursor:
        self._note(statement)
        return self._connection.executemany(statement, values)  # type: ignore[arg-type]

    @property
    def connection(self) -> Seen:
        return self

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def __enter__(self) -> None:
        self._connection.__enter__()

    def __exit__(self, *error: object) -> None:
        self._connection.__exit__(*error)


def finish_and_claim(rows: Rows) -> None:
    lease = rows.claim_one(s=5)
    rows.store.attempts.finish_and_claim(
        [Completed(lease, "1")],
        worker_id="w",
        queues=[rows.queues["work"]],
        rules=rows.rules(),
        capacity=capacity_for(2),
        now_us=at(6),
    )


def cancel_all(rows: Rows) -> None:
    rows.enqueue("many", s=4)
    rows.store.jobs.cancel_all("many", now_us=at(9))


def retry_failed(rows: Rows) -> None:
    rows.enqueue("failing", s=4)
    rows.end(rows.claim_one("failing", s=5))
    rows.store.jobs.retry_failed("failing", now_us=at(9))


HOT: dict[str, Callable[[Rows], object]] = {
    "enqueue": lambda rows: rows.enqueue("work", s=4),
    "finish and claim": finish_and_claim,
    "claim for a device": lambda rows: rows.place(rows.enqueue_sized("ai", 1, "m"), s=4),
    "give back": lambda rows: rows.postpone(rows.claim_one(s=7), "released", due_s=7, s=7),
    "release": lambda rows: rows.store.attempts.release_device(1, 1),
    "move what is due": lambda rows: rows.store.jobs.move_due(now_us=at(8)),
    "backend": lambda rows: rows.store.engine.writer.run(lambda connection: jobs.promote_waiting_for(connection, "ollama")),
    "chunks": lambda rows: rows.store.attempts.report([Report(1, 1, "x")]),
    "cancel": lambda rows: rows.store.jobs.cancel(rows.enqueue(s=9), now_us=at(9)),
    "cancel all": cancel_all,
    "retry what failed": retry_failed,
    "set demands": lambda rows: rows.store.jobs.set_demands([(1, Demand(1))], largest_bytes=1),
    "refuse": lambda rows: rows.store.jobs.refuse_waiting("nowhere", message="", now_us=at(9)),
    "prune": lambda rows: rows.store.jobs.prune(State.COMPLETED, before_us=at(5), limit=1000),
    "prune events": lambda rows: rows.store.followers.prune(before_us=at(5), limit=5000),
    "rescue": lambda rows: rows.rescue("nobody", s=9),
}


@pytest.mark.parametrize("name", HOT)
def test_what_an_operation_really_runs_scans_and_sorts_nothing(filled: Rows, name: str) -> None:
    writer = filled.store.engine.writer
    filled.store.queues.ensure("work")
    cursor = writer.cursor
    assert cursor is not None
    writer.cursor = seen = Seen(cursor.connection)  # type: ignore[assignment]
    try:
        HOT[name](filled)
    finally:
        writer.cursor = cursor
    assert seen.plans
    for statement, lines in seen.plans.items():
        assert_good(lines, statement)


def test_the_reads_of_a_waiting_worker_and_of_a_view_scan_nothing(filled: Rows) -> None:
    with filled.store.engine.lent() as connection:
        seen = Seen(connection)
        queries.next_due_us(seen)  # type: ignore[arg-type]
        queries.stop_requests(seen, "w")  # type: ignore[arg-type]
        queries.queue_load(seen, filled.queues["ai"], largest_bytes=10**10)  # type: ignore[arg-type]
        queries.queue_load(seen, filled.queues["work"], largest_bytes=0)  # type: ignore[arg-type]
        queries.running_jobs(seen, "work")  # type: ignore[arg-type]
        queries.last_waiting(seen, "work", largest_bytes=0)  # type: ignore[arg-type]
        queries.last_waiting(seen, "ai", largest_bytes=10**10)  # type: ignore[arg-type]
        for queue in ("work", "ai"):
            waiting = queries.last_waiting(connection, queue, largest_bytes=10**10)
            queries.work_ahead(seen, queue, waiting, largest_bytes=10**10)  # type: ignore[arg-type]
            queries.work_ahead(seen, queue, None, largest_bytes=10**10)  # type: ignore[arg-type]
        queries.unfinished_ids(seen, "work")  # type: ignore[arg-type]
        queries.discarded_ids(seen, "work")  # type: ignore[arg-type]
        queries.discarded_ids(seen, None)  # type: ignore[arg-type]
        queries.prunable_count(seen, State.COMPLETED, before_us=at(5))  # type: ignore[arg-type]
        outcomes.reservations(seen)  # type: ignore[arg-type]
        outcomes.abandoned_workers(seen)  # type: ignore[arg-type]
        claims.candidates(seen, "ai", room_bytes=10**10)  # type: ignore[arg-type]
    for statement, lines in seen.plans.items():
        lines = [line for line in lines if "TEMP B-TREE" not in line] if " UNION " in statement else lines
        assert_good(lines, statement)


def test_listing_one_state_uses_no_scan(tmp_path: Path) -> None:
    store = open_store(tmp_path / "jobs.db")
    with store.engine.lent() as connection:
        seen = Seen(connection)
        for state in (State.CANCELLED, State.DISCARDED):
            for place in ({}, {"after": 5}, {"before": 5}):
                queries.list_jobs(seen, queue=None, state=state, limit=9, **place)  # type: ignore[arg-type]
    store.close()
    for statement, lines in seen.plans.items():
        assert_good(lines, statement, "jobs_unsuccessful")


def test_copying_the_queue_walks_through_no_jobs_but_those_that_it_copies(filled: Rows) -> None:
    due = [State.RETRYABLE, State.SCHEDULED]
    with filled.store.engine.lent() as connection:
        seen = Seen(connection)
        for states in ([State.AVAILABLE], [State.RUNNING], [State.SCHEDULED], [State.RETRYABLE], due, FINISHED):
            for newest_first in (False, True):
                following.entries(seen, "work", states, newest_first=newest_first)  # type: ignore[arg-type]
        following.records(seen, range(1, 40))  # type: ignore[arg-type]
        following.finished_by_minute(seen, "work", FINISHED, since_us=at(0))  # type: ignore[arg-type]
        following.followers(seen)  # type: ignore[arg-type]
        following.follower_position(seen, "mirror")  # type: ignore[arg-type]
        following.last_event_id(seen)  # type: ignore[arg-type]
    assert len(seen.plans) == 22
    for statement, lines in seen.plans.items():
        # What is copied is put in its order afterwards.
        assert_good([line for line in lines if "TEMP B-TREE" not in line], statement)


@pytest.mark.parametrize(
    ("state", "index"),
    [
        (State.AVAILABLE, "jobs_claim"),
        (State.RUNNING, "jobs_running"),
        (State.SCHEDULED, "jobs_due"),
        (State.RETRYABLE, "jobs_due"),
    ],
)
@pytest.mark.parametrize("queue", [None, "work"])
def test_listing_a_state_that_few_jobs_have_walks_through_those_only(
    filled: Rows, state: State, index: str, queue: str | None
) -> None:
    with filled.store.engine.lent() as connection:
        seen = Seen(connection)
        for place in ({}, {"after": 5}, {"before": 5}):
            queries.list_jobs(seen, queue=queue, state=state, limit=9, **place)  # type: ignore[arg-type]
    for statement, lines in seen.plans.items():
        assert any(f"INDEX {index}" in line for line in lines), (statement, lines)


def test_no_statement_numbers_its_parameters() -> None:
    """Python 3.12 warns of a sequence for such ones, and 3.14 refuses it."""
    folder = Path(claims.__file__).parent
    assert [path.name for path in folder.glob("*.py") if re.search(r"\?[0-9]", path.read_text())] == []
