"""No write transaction of the queue's own upkeep does more work because there are more rows."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from inspect import getmembers, isfunction
from pathlib import Path
from typing import Any

import pytest

from gpuqueue.contract import engine as contract
from gpuqueue.domain.answers import Demand
from gpuqueue.domain.estimates import Observation
from gpuqueue.domain.job import State
from gpuqueue.domain.outcomes import Completed, Report
from gpuqueue.store import open_store
from gpuqueue.store.sqlite.jobs import NEVER_FITS, ROWS_AT_ONCE, SCAN_LIMIT
from tests.store.rows import GB, Rows, at, capacity_for

FEW = 2 * ROWS_AT_ONCE
MANY = 3 * FEW
STEP = 100  # instructions of SQLite's virtual machine that are counted together
MOST_STEPS = (
    1_500  # some hundred rows that change, with their entries in indexes and their events; many more that are only visited
)
RUNNING = 40
LADEN = 1  # a cancelled job with very many pieces of output, log lines and attempts

# Each of these is there `count` times.
CROWDS = {
    "kept for ever": "'work', 'completed', NULL, '', 0, NULL, -900, NULL",
    "to be pruned": "'work', 'cancelled', NULL, '', 0, NULL, -900, NULL",
    "available": "'work', 'available', NULL, '', 0, NULL, NULL, NULL",
    "expired": "'work', 'available', NULL, '', 0, -5, NULL, NULL",
    "due": "'work', 'scheduled', NULL, '', 0, NULL, NULL, NULL",
    "sized": "'ai', 'available', NULL, 'm', 1 + value % 3, NULL, NULL, NULL",
    "sized and too large": f"'ai', 'available', NULL, 'm', {NEVER_FITS}, NULL, NULL, NULL",
    "all too large": f"'large', 'available', NULL, 'm', {NEVER_FITS}, NULL, NULL, NULL",
    "waiting for a backend": "'ai', 'retryable', 'ollama', 'm', 2, NULL, NULL, NULL",
}


def fill(path: Path, count: int) -> None:
    store = open_store(path)
    rows = Rows(store)
    rows.queue("work")
    rows.queue("ai", gpu=True)
    rows.queue("large", gpu=True)
    rows.queue("nowhere")
    assert rows.enqueue("nowhere") == LADEN
    store.jobs.cancel(LADEN, now_us=at(-2000))
    for number in range(RUNNING):
        rows.enqueue("work")
        rows.claim("work", worker="w" if number % 2 else "other")
    store.followers.add("read")
    store.followers.add("behind")
    store.backends.lost("ollama", error="gone", probe_every_s=1, longest_s=9, now_us=at(0))

    def crowd(connection: sqlite3.Connection) -> None:
        numbers = "WITH numbers (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM numbers WHERE value < ?) "
        triggers = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]
        assert triggers
        for name, values in CROWDS.items():
            queue, state, backend, model, size, expires, finished, _ = values.split(", ")
            due = 900 if "retryable" in state else 0
            connection.execute(
                f"{numbers}INSERT INTO jobs (queue, task, state, enqueued_at, scheduled_at, waiting_for, demand_model, "
                f"demand_class, expires_at, finished_at, tags) SELECT {queue}, 'app.task', {state}, {at(0)}, {at(due)} + value, "
                f"{backend}, {model}, {size}, {at(0)} + 1000000 * {expires}, {at(0)} + 1000000 * {finished} + value, ? "
                "FROM numbers",
                (count, f'["{name}"]'),
            )
        for table, columns in (("chunks", "seq, lease, content"), ("logs", "seq, lease, at, message")):
            values = ", ".join(["value"] + ["1"] * columns.count(","))
            connection.execute(
                f"{numbers}INSERT INTO {table} (job_id, {columns}) SELECT {LADEN}, {values} FROM numbers", (count,)
            )
        connection.execute(
            f"{numbers}INSERT INTO attempts (job_id, lease, attempt, outcome, finished_at) "
            f"SELECT {LADEN}, value, 1, 'snoozed', 1 FROM numbers",
            (count,),
        )
        connection.execute("UPDATE events SET at = ?", (at(-800),))  # the triggers wrote an event for every row
        connection.execute("UPDATE followers SET last_event_id = (SELECT max(id) FROM events) WHERE name = 'read'")
        connection.execute(
            "INSERT INTO counters SELECT queue, state, count(*) FROM jobs WHERE finished_at IS NOT NULL GROUP BY 1, 2 "
            "ON CONFLICT DO UPDATE SET count = excluded.count"
        )

    store.engine.writer.run(crowd)
    store.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A file with few rows of each kind, and one with many."""
    folder = tmp_path_factory.mktemp("bounds")
    for count in (FEW, MANY):
        fill(folder / f"{count}.db", count)
    return {count: folder / f"{count}.db" for count in (FEW, MANY)}


def steps_of_each_transaction(rows: Rows, work: Callable[[Rows], object]) -> list[int]:
    """What each write transaction of the work costs, in STEPs."""
    rows.store.queues.ensure("work")
    assert rows.store.engine.writer.cursor is not None
    connection = rows.store.engine.writer.cursor.connection
    found: list[int] = []

    def note(statement: str) -> None:
        if statement.startswith("BEGIN"):
            found.append(0)

    def count() -> None:
        if found:
            found[-1] += 1

    connection.set_trace_callback(note)
    connection.set_progress_handler(count, STEP)
    try:
        work(rows)
    finally:
        connection.set_trace_callback(None)
        connection.set_progress_handler(None, STEP)
    return found


def until_nothing_is_left(step: Callable[[], int]) -> None:
    while step():
        pass


def accept(rows: Rows) -> None:
    settings = {"queues": {"work": {}, "ai": {}}}
    assert rows.store.workers.accept_configuration(digest="new", settings=settings, force=True, now_us=at(1)) is None


def prune_events(rows: Rows) -> None:
    rows.store.followers.remove("behind")
    until_nothing_is_left(lambda: rows.store.followers.prune(before_us=at(0), limit=ROWS_AT_ONCE))


def prune(state: State, *, before_s: float) -> Callable[[Rows], None]:
    return lambda rows: until_nothing_is_left(lambda: rows.store.jobs.prune(state, before_us=at(before_s), limit=SCAN_LIMIT))


def claim(rows: Rows, **settings: Any) -> None:
    rows.queue("large", gpu=True)
    rows.queue("work", **settings)
    rows.store.attempts.finish_and_claim(
        [Completed(rows.claim_one("work", s=9), "1")],
        worker_id="w",
        queues=[rows.queues["work"]],
        rules=rows.rules(),
        capacity=capacity_for(2),
        now_us=at(9),
    )


# What a worker does by itself, by the method of the engine that it calls.
UPKEEP: dict[str, dict[str, Callable[[Rows], object]]] = {
    "Jobs.move_due": {
        "what is due and what expired": lambda rows: [rows.store.jobs.move_due(now_us=at(9)) for _ in range(3)],
        "nothing": lambda rows: rows.store.jobs.move_due(now_us=at(-999)),
    },
    "Jobs.refuse_waiting": {
        "all": lambda rows: until_nothing_is_left(
            lambda: len(rows.store.jobs.refuse_waiting("work", message="away", now_us=at(9)))
        ),
        "nothing": lambda rows: rows.store.jobs.refuse_waiting("nowhere", message="away", now_us=at(9)),
    },
    "Jobs.refuse_one": {"one": lambda rows: rows.store.jobs.refuse_one(LADEN, message="away", now_us=at(9))},
    "Jobs.set_demands": {
        "one": lambda rows: rows.store.jobs.set_demands([(rows.enqueue("ai"), Demand(GB, "m"))], largest_bytes=GB)
    },
    "Jobs.forget_demands": {
        "a model's": lambda rows: rows.store.jobs.forget_demands_of("m"),
        "all": lambda rows: rows.store.jobs.forget_demands_of(None),
        "an unknown model's": lambda rows: rows.store.jobs.forget_demands_of("n"),
    },
    "Jobs.prune": {
        "cancelled": prune(State.CANCELLED, before_s=0),
        "completed": prune(State.COMPLETED, before_s=0),
        "a state without a job": prune(State.DISCARDED, before_s=0),
        "a state whose jobs are all too young": prune(State.COMPLETED, before_s=-5000),
    },
    "Attempts.finish_and_claim": {
        "beside what is due": claim,
        "yielding to a queue of jobs that fit no device": lambda rows: claim(rows, yields_to=("large",)),
    },
    "Attempts.finish": {"one": lambda rows: rows.complete(rows.claim_one("work", s=9), s=9)},
    "Attempts.claim_placed": {"one": lambda rows: rows.place(rows.enqueue_sized("ai", 1, "m", priority=9), s=9)},
    "Attempts.request_preemption": {"one": lambda rows: rows.store.attempts.request_preemption(2, 1)},
    "Attempts.note_unloaded": {"one": lambda rows: rows.store.attempts.note_unloaded(2, 1, 0)},
    "Attempts.release_device": {"one": lambda rows: rows.store.attempts.release_device(2, 1)},
    "Attempts.report": {"one": lambda rows: rows.store.attempts.report([Report(2, 1, "text", [(at(1), "line")])])},
    "Attempts.rescue": {
        "a worker": lambda rows: rows.rescue("other", s=9),
        "nothing": lambda rows: rows.rescue("nobody", s=9),
    },
    "Queues.note_holds": {"one": lambda rows: rows.store.queues.note_holds({"work": ()}, now_us=at(9))},
    "Workers.accept_configuration": {"new settings": accept},
    "Workers.agree_on_runtime_base": {
        "one": lambda rows: rows.store.workers.agree_on_runtime_base("here", 1, "/run", instead_of=None)
    },
    "Workers.register": {"one": lambda rows: rows.register("new")},
    "Workers.extend": {"one": lambda rows: rows.store.workers.extend("w", expires_at_us=at(99))},
    "Workers.unregister": {"one": lambda rows: rows.store.workers.unregister("w", now_us=at(9))},
    "Workers.publish_holds": {"one": lambda rows: rows.store.workers.publish_holds("w", {})},
    "Backends.lost": {
        "one": lambda rows: rows.store.backends.lost("o", error="gone", probe_every_s=1, longest_s=9, now_us=at(9))
    },
    "Backends.answered": {
        "for which many jobs wait": lambda rows: rows.store.backends.answered("ollama", worked=True, now_us=at(9)),
        "for which none waits": lambda rows: rows.store.backends.answered("other", worked=False, now_us=at(9)),
    },
    "Backends.note_models": {"one": lambda rows: rows.store.backends.note_models("ollama", {"m": GB})},
    "Backends.publish_reading": {
        "one": lambda rows: rows.store.backends.publish_reading("gpu0", reading=None, residents=(), now_us=at(9))
    },
    "Services.take": {"one": lambda rows: rows.store.services.take("mirror", "w", expires_at_us=at(99), now_us=at(9))},
    "Services.extend": {"one": lambda rows: rows.store.services.extend("mirror", 1, expires_at_us=at(99))},
    "Services.release": {"one": lambda rows: rows.store.services.release("mirror", 1)},
    "Services.note": {"one": lambda rows: rows.store.services.note("mirror", 1, {}, now_us=at(9))},
    "Followers.add": {"one": lambda rows: rows.store.followers.add("new")},
    "Followers.remove": {"one": lambda rows: rows.store.followers.remove("behind")},
    "Followers.take": {"some": lambda rows: rows.store.followers.take("behind", limit=200)},
    "Followers.advance": {"one": lambda rows: rows.store.followers.advance("behind", 3)},
    "Followers.prune": {
        "all": prune_events,
        "while a follower is behind": lambda rows: rows.store.followers.prune(before_us=at(0), limit=ROWS_AT_ONCE),
        "nothing": lambda rows: rows.store.followers.prune(before_us=at(-9999), limit=ROWS_AT_ONCE),
        "and a follower is forgotten": lambda rows: rows.store.followers.prune(
            before_us=at(0), forget_before_us=at(0), limit=ROWS_AT_ONCE
        ),
    },
    "Estimates.learn": {"one": lambda rows: rows.store.estimates.learn([Observation("k", "m", 1.0)], now_us=at(9))},
    "Upkeep.try_write": {"it": lambda rows: rows.store.upkeep.try_write()},
    "Upkeep.checkpoint": {"it": lambda rows: rows.store.upkeep.checkpoint()},
    "Upkeep.set_back": {"it": lambda rows: rows.store.upkeep.set_back(now_us=at(-9))},
}
# What a person or a program asks for: its caller gives the jobs, a slice at a time where the store chooses them.
ASKED_FOR = {
    "Jobs.enqueue", "Jobs.enqueue_many", "Jobs.cancel", "Jobs.cancel_several", "Jobs.retry", "Jobs.retry_discarded",
    "Attempts.claim_job", "Queues.ensure", "Queues.pause", "Queues.resume", "Upkeep.empty",
}  # fmt: skip
READS = {"Upkeep.log_bytes", "Upkeep.log_holders"}


def test_every_method_of_an_engine_is_either_upkeep_or_asked_for() -> None:
    roles = (
        contract.Jobs, contract.Attempts, contract.Queues, contract.Workers, contract.Backends, contract.Services,
        contract.Followers, contract.Estimates, contract.Upkeep,
    )  # fmt: skip
    methods = {
        f"{role.__name__}.{name}" for role in roles for name, _ in getmembers(role, isfunction) if not name.startswith("_")
    }
    assert methods == {*UPKEEP, *ASKED_FOR, *READS}


@pytest.mark.parametrize(
    ("method", "case"), [(method, case) for method, cases in UPKEEP.items() for case in cases], ids=lambda value: value
)
def test_a_transaction_of_upkeep_does_no_more_among_many_rows(
    filled: dict[int, Path], tmp_path: Path, method: str, case: str
) -> None:
    costs = {}
    for count, path in filled.items():
        shutil.copy(path, tmp_path / path.name)
        store = open_store(tmp_path / path.name)
        rows = Rows.__new__(Rows)
        rows.store, rows.queues, rows.worker, rows._registered = store, {}, "w", {"w", "other"}
        rows.queue("work")
        rows.queue("ai", gpu=True)
        try:
            costs[count] = steps_of_each_transaction(rows, UPKEEP[method][case])
        finally:
            store.close()
    most = {count: max(steps, default=0) for count, steps in costs.items()}
    assert most[MANY] <= 1.1 * most[FEW] + 2, "a transaction does more among more rows"
    assert most[MANY] <= MOST_STEPS
