"""Every change of a job's state in the store is one of the table's, and writes what the table says and nothing else."""

from __future__ import annotations

import ast
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gpuqueue.domain import transitions
from gpuqueue.domain.errors import StateError
from gpuqueue.domain.job import FINISHED, JobErrorRecord, Lease, PartialOutput, State
from gpuqueue.domain.outcomes import Completed, Crashed, Ended, Postponed, Report
from gpuqueue.domain.transitions import ONLY_IN, TRANSITIONS, Change, Transition
from gpuqueue.domain.units import from_us
from gpuqueue.store import open_store
from gpuqueue.store.sqlite import integrity, queries
from gpuqueue.store.sqlite.integrity import check_file
from gpuqueue.store.sqlite.jobs import SUSPECT
from gpuqueue.store.sqlite.rows import from_error
from gpuqueue.store.sqlite.state_changes import update
from gpuqueue.store.store import Store
from tests.store.rows import BOOM, GB, NOW_US, Rows, assert_counters_are_true, at

PACKAGE = Path(__file__).parents[2] / "gpuqueue"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("empty") / "jobs.db"
    open_store(path).close()
    return path


@pytest.fixture
def make_rows(empty: Path, tmp_path: Path) -> Iterator[Callable[[], Rows]]:
    """Make stores in files of their own."""
    made: list[Store] = []

    def make() -> Rows:
        made.append(open_store(Path(shutil.copy(empty, tmp_path / f"{len(made)}.db"))))
        return Rows(made[-1])

    yield make
    for store in made:
        store.close()


def row_of(connection: sqlite3.Connection, job_id: int) -> Row:
    cursor = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,))
    return dict(zip([name for name, *_ in cursor.description], cursor.fetchone(), strict=True))


def after(move: Transition, before: Row, given: Mapping[str, Any], now_us: int) -> Row:
    """The row that a transition makes of another, read off the table."""
    found = {**before, "state": str(move.target)}
    for column, change in move.sets.items():
        if isinstance(change, Change):
            found[column] = _value(change, column, before, given, now_us)
        else:
            found[column] = change
    return found


def _value(change: Change, column: str, before: Row, given: Mapping[str, Any], now_us: int) -> Any:
    match change:
        case Change.NOW:
            return now_us
        case Change.GIVEN:
            return given[column]
        case Change.GIVEN_OR_KEPT:
            return given.get(column, before[column])
        case Change.ONE_MORE:
            return before[column] + 1
        case Change.ONE_LESS:
            return before[column] - 1
        case Change.AS_ENQUEUED:
            return before["enqueued_at"]
        case Change.UNSUSPECTED:
            return max(before[column], 0)
        case Change.CLEARED_UNLESS_RESERVED:
            return before[column] if before["device"] else ""


def assert_only_what_its_state_has(row: Row) -> None:
    for column, states in ONLY_IN.items():
        assert not row[column] or row["state"] in states, f"a {row['state']} job has {column} {row[column]!r}"
    assert (row["finished_at"] is not None) is (row["state"] in FINISHED)


# --- every statement comes from the table ---


def texts(path: Path) -> Iterator[str]:
    """The texts of a file; what an f-text puts in stands there in braces."""
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            sides = [side.value for side in (node.left, node.right) if isinstance(side, ast.Constant)]
            if len(sides) == 2 and all(isinstance(side, str) for side in sides):
                yield "".join(sides)


def writes_a_state(path: Path, text: str) -> bool:
    """Whether a text is an UPDATE of the state of jobs; what is put in is looked up among the names of its module."""
    for columns in re.findall(r"UPDATE(?: OR \w+)? jobs\s+SET\s(.*?)(?:\sWHERE\s|$)", text, re.DOTALL):
        for name in re.findall(r"{(.*?)}", columns):
            module = import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
            columns = columns.replace(f"{{{name}}}", str(eval(name, vars(module))))
        if re.search(r"\bstate\s*[=,)]", columns):
            return True
    return False


def test_only_the_table_words_a_change_of_state() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "UPDATE" in path.read_text() and path.stem != "state_changes"]
    assert len(files) > 5
    assert [(path.name, text) for path in files for text in texts(path) if writes_a_state(path, text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE jobs SET state = 'available' WHERE id = ?",
        "UPDATE jobs SET error = ?,\n  state='available'",
        "UPDATE OR IGNORE jobs SET {_HELD} WHERE id = ?",
        "UPDATE jobs SET (state, error) = (?, ?) WHERE id = ?",
    ],
)
def test_a_change_of_state_that_is_worded_elsewhere_is_found(text: str) -> None:
    assert writes_a_state(PACKAGE / "store" / "sqlite" / "outcomes.py", text)


def test_new_jobs_are_stored_in_the_states_that_the_table_says() -> None:
    allowed = {str(move.target) for move in TRANSITIONS if not move.sources}
    inserts = [
        text for path in PACKAGE.rglob("*.py") for text in texts(path) if re.match(r"(INSERT|REPLACE).* INTO jobs\b", text)
    ]
    assert inserts
    for text in inserts:
        assert {word for word in re.findall(r"'(\w+)'", text) if word in list(State)} <= allowed, text


@pytest.mark.parametrize("move", [transitions.ENQUEUE, transitions.SCHEDULE], ids=lambda move: move.name)
def test_a_new_job_has_what_the_table_says(make_rows: Callable[[], Rows], move: Transition) -> None:
    rows = make_rows()
    due_s = 5 if move is transitions.ENQUEUE else 6
    job_id = rows.enqueue(s=5, due_s=due_s)
    with rows.store.engine.lent() as connection:
        row = row_of(connection, job_id)
    assert row == after(move, row, {"scheduled_at": at(due_s)}, at(5))
    assert_only_what_its_state_has(row)
    assert not any(row[name] for name in ("attempt", "lease", "crashes", "preemptions", "worker_id", "device", "reserved_bytes"))


# --- the wording, one transition at a time ---

ERROR = from_error(JobErrorRecord("new", "new"))
GIVEN: Row = {
    "scheduled_at": at(70), "worker_id": "new", "device": "gpu1", "reserved_bytes": 7, "preemptible": 0, "continues": 1,
    "result": "2", "error": ERROR, "waiting_for": "other", "crashes": 2, "demand_class": 3,
}  # fmt: skip
# All that a job in whatever state may have; what only some states have is added.
FULL: Row = {
    "queue": "work", "task": "t", "priority": 1, "enqueued_at": at(1), "scheduled_at": at(2), "started_at": at(3),
    "expires_at": at(99), "attempt": 2, "max_attempts": 4, "lease": 5, "crashes": 1, "timeout_s": 1.5, "worker_id": "old",
    "demand_model": "m", "demand_class": 2, "demand_bytes": GB, "device": "gpu0", "reserved_bytes": GB, "arguments": "{}",
    "result": "1", "error": from_error(BOOM), "tags": '["a"]', "progress": 0.5, "progress_note": "half", "wanted_bytes": GB,
    "wanted_device": "gpu0", "fallback": '["n"]', "preemptible": 1, "preempt_lease": 4, "preemptions": 3, "output_tokens": 9,
    "continues": 0, "first_output_at": at(4), "passed_at": at(2), "unloaded_lease": 4,
}  # fmt: skip
ONLY: Row = {"finished_at": at(8), "waiting_for": "ollama", "cancel_requested": 1}
STEPS = [pytest.param(move, source, id=f"{move.name} from {source}") for move in TRANSITIONS for source in move.sources]


@pytest.mark.parametrize("is_reserved", [True, False], ids=["reserved", "not reserved"])
@pytest.mark.parametrize(("move", "source"), STEPS)
def test_a_transition_writes_what_the_table_says_and_nothing_else(
    empty: Path, tmp_path: Path, move: Transition, source: State, is_reserved: bool
) -> None:
    row = {**FULL, "state": str(source), **{name: ONLY[name] for name, states in ONLY_IN.items() if source in states}}
    if not is_reserved:
        row.update(device=None, reserved_bytes=0)
    with closing(sqlite3.connect(shutil.copy(empty, tmp_path / "jobs.db"))) as connection:
        connection.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
        before = row_of(connection, 1)
        takes = (Change.NOW, Change.GIVEN, Change.GIVEN_OR_KEPT)
        values = [at(9) if change is Change.NOW else GIVEN[name] for name, change in move.sets.items() if change in takes]
        assert connection.execute(update(move, "id = ?"), (*values, 1)).rowcount == 1
        found = row_of(connection, 1)
        assert found == after(move, before, GIVEN, at(9))
        assert_only_what_its_state_has(found)
        wrong = {finding.check for finding in integrity.contradictions(connection, tmp_path)}
        assert wrong <= {"counters"}, "the counters are moved beside the row"


# --- what the store's methods make of a job, whatever its state ---

CRASHED = from_error(JobErrorRecord("crashed", "worker w died (a test says so)"))
LAST_CRASH = from_error(JobErrorRecord("crashed", "the job's process died once; the last time: worker w died (a test says so)"))
STOPPED = from_error(JobErrorRecord("cancelled", "cancelled while running"))
EXPIRED = from_error(JobErrorRecord("expired", "expired before it could start"))
AWAY = from_error(JobErrorRecord("unavailable", "away"))
EARLIER = JobErrorRecord("failed", "an earlier attempt")
S = 10  # when the call is made


@dataclass(frozen=True)
class Call:
    """A call that makes a transition of each job in one of its sources, and leaves all others alone."""

    move: Transition
    make: Callable[[Rows, int], object]
    given: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    sources: tuple[State, ...] = ()  # where this call has not all that the transition has
    options: Mapping[str, Any] = field(default_factory=dict)  # of the job
    due_s: float = 100
    is_asked: bool = False  # to stop, where the job runs
    on_device: bool | None = None  # None: with a device and without
    otherwise: Mapping[State, Mapping[str, Any]] = field(default_factory=dict)  # what it writes where it moves nothing
    spoil: str = ""  # a statement that is run on the job before
    is_rescue: bool = False  # which also takes over the clean-up of the dead worker's devices

    @property
    def name(self) -> str:
        return f"{self.move.name}{', ' if self.title else ''}{self.title}"

    @property
    def all_sources(self) -> tuple[State, ...]:
        return self.sources or self.move.sources


def lease_of(rows: Rows, job_id: int) -> Lease:
    job = rows.job(job_id)
    return Lease(job_id, job.lease, job.queue, job.task, job.attempt, job.max_attempts, {}, None, from_us(NOW_US))


def postpone(outcome: str, due_s: float, **more: Any) -> Callable[[Rows, int], object]:
    def make(rows: Rows, job_id: int) -> None:
        lease = lease_of(rows, job_id)
        rows.store.attempts.finish([Postponed(lease, outcome, at(due_s), **more)], now_us=at(S))

    return make


def ended(state: State) -> Callable[[Rows, int], object]:
    return lambda rows, job_id: rows.store.attempts.finish([Ended(lease_of(rows, job_id), state, BOOM)], now_us=at(S))


def wake(rows: Rows, _job_id: int) -> None:
    rows.store.backends.lost("ollama", error="gone", probe_every_s=1, longest_s=9, now_us=at(S))
    rows.store.backends.answered("ollama", worked=True, now_us=at(S))


def snooze_until_back(rows: Rows, job_id: int) -> None:
    wake(rows, job_id)  # while the job runs
    postpone("snoozed", 900, waiting_for="ollama")(rows, job_id)


def rescue(*, max_crashes: int = 9, executes: bool = True) -> Callable[[Rows, int], object]:
    return lambda rows, job_id: rows.rescue(executing=[job_id] if executes else [], max_crashes=max_crashes, s=S)


def crash(state: State) -> Callable[[Rows, int], object]:
    return lambda rows, job_id: rows.store.attempts.finish([Crashed(lease_of(rows, job_id), state, BOOM)], now_us=at(S))


SUSPECTED = f"UPDATE jobs SET demand_class = {SUSPECT} WHERE state = 'running'"


def retry(rows: Rows, job_id: int) -> None:
    with suppress(StateError):
        rows.store.jobs.retry(job_id, now_us=at(S))


def mend(rows: Rows, job_id: int) -> None:
    for finding in check_file(rows.store.engine.path):
        with closing(sqlite3.connect(rows.store.engine.path)) as connection, connection:  # as a person does
            connection.execute(finding.mend.split('"')[1].replace("ID", str(job_id)))


UNSIZED = {"demand_class": 0, "demand_bytes": 0}  # the model stays while the device is reserved
ASKED = {State.RUNNING: {"cancel_requested": 1}}
CALLS = [
    Call(transitions.PROMOTE, lambda rows, _: rows.store.jobs.move_due(now_us=at(S)), due_s=5),
    Call(transitions.WAKE, wake),
    Call(transitions.CLAIM, lambda rows, _: rows.claim("work", s=S), {"worker_id": "w"}, on_device=False),
    Call(
        transitions.PLACE,
        lambda rows, job_id: rows.place(job_id, s=S),
        {"worker_id": "w", "device": "gpu0", "reserved_bytes": GB, "preemptible": 0, "continues": 0},
        on_device=True,
    ),
    *(
        call
        for is_asked, title in ((False, ""), (True, "asked to stop"))
        for call in (
            Call(
                transitions.COMPLETE,
                lambda rows, job_id: rows.store.attempts.finish([Completed(lease_of(rows, job_id), "7")], now_us=at(S)),
                {"result": "7"}, title, is_asked=is_asked,
            ),
            Call(
                transitions.DISCARD,
                ended(State.DISCARDED),
                {"error": from_error(BOOM)}, title, is_asked=is_asked,
            ),
            Call(
                transitions.STOP,
                ended(State.CANCELLED),
                {"error": from_error(BOOM)}, title, is_asked=is_asked,
            ),
        )
    ),
    *(
        Call(transitions.STOP, postpone(outcome, 900), {"error": STOPPED}, f"it would be {outcome}", is_asked=True)
        for outcome in ("retried", "snoozed", "released", "preempted")
    ),
    Call(
        transitions.RETRY_LATER, postpone("retried", 900, error=BOOM), {"scheduled_at": at(900), "error": from_error(BOOM)}
    ),
    Call(transitions.RETRY_AT_ONCE, postpone("retried", S), {"scheduled_at": at(S)}),
    Call(
        transitions.SNOOZE,
        postpone("snoozed", 900, error=BOOM, waiting_for="ollama"),
        {"scheduled_at": at(900), "error": from_error(BOOM), "waiting_for": "ollama"},
    ),
    Call(transitions.SNOOZE, postpone("snoozed", 900), {"scheduled_at": at(900), "waiting_for": None}, "for a time"),
    Call(transitions.SNOOZE_OVER, postpone("snoozed", S, waiting_for="ollama"), {"scheduled_at": at(S)}),
    Call(
        transitions.SNOOZE_OVER, snooze_until_back, {"scheduled_at": at(0)}, "its backend came back",
        otherwise={State.RETRYABLE: {"state": "available", "scheduled_at": at(0), "waiting_for": None, **UNSIZED}},
    ),
    *(
        Call(move, postpone(outcome, due_s), title=title)
        for move, outcome in ((transitions.RELEASE, "released"), (transitions.PREEMPT, "preempted"))
        for due_s, title in ((S, ""), (900, "by a clock that is ahead"))
    ),
    Call(transitions.CRASH, crash(State.AVAILABLE), {"error": from_error(BOOM)}),
    Call(transitions.CRASH_DISCARDED, crash(State.DISCARDED), {"error": from_error(BOOM)}),
    Call(transitions.STOP, crash(State.AVAILABLE), {"error": STOPPED}, "it would have crashed", is_asked=True),
    *(
        Call(move, postpone(outcome, S), title="a suspect", spoil=SUSPECTED, on_device=False)
        for move, outcome in ((transitions.RELEASE, "released"), (transitions.PREEMPT, "preempted"))
    ),
    *(
        Call(move, postpone(outcome, due_s), {"scheduled_at": at(due_s), **more}, "a suspect", spoil=SUSPECTED, on_device=False)
        for move, outcome, due_s, more in (
            (transitions.RETRY_LATER, "retried", 900, {}),
            (transitions.RETRY_AT_ONCE, "retried", S, {}),
            (transitions.SNOOZE, "snoozed", 900, {"waiting_for": None}),
            (transitions.SNOOZE_OVER, "snoozed", S, {}),
        )
    ),
    Call(
        transitions.RESCUE, rescue(), {"crashes": 0, "error": CRASHED, "demand_class": SUSPECT}, is_rescue=True, on_device=False
    ),
    Call(transitions.RESCUE, rescue(), {"crashes": 0, "error": CRASHED}, is_rescue=True, on_device=True),
    Call(transitions.RESCUE, rescue(executes=False), {"crashes": 0}, "not begun", is_rescue=True),
    Call(transitions.RESCUE, rescue(executes=False), {"crashes": 0}, "a suspect elsewhere", spoil=SUSPECTED, on_device=False),
    Call(
        transitions.RESCUE, rescue(), {"crashes": 1, "error": CRASHED, "demand_class": SUSPECT}, "a suspect", spoil=SUSPECTED,
        on_device=False,
    ),
    Call(transitions.RESCUE_CANCELLED, rescue(max_crashes=1), {"crashes": 0, "error": CRASHED}, is_asked=True, is_rescue=True),
    Call(
        transitions.RESCUE_DISCARDED, rescue(max_crashes=1), {"crashes": 1, "error": LAST_CRASH}, spoil=SUSPECTED, on_device=False
    ),
    Call(transitions.CANCEL, lambda rows, job_id: rows.store.jobs.cancel(job_id, now_us=at(S)), otherwise=ASKED),
    Call(transitions.CANCEL, lambda rows, _: [rows.store.jobs.cancel_all(name, now_us=at(S)) for name in rows.queues],
         title="all of a queue", otherwise=ASKED),
    Call(
        transitions.EXPIRE, lambda rows, _: rows.store.jobs.move_due(now_us=at(S)), {"error": EXPIRED}, options={"expires_s": 8}
    ),
    Call(
        transitions.REFUSE, lambda rows, job_id: rows.store.jobs.refuse_one(job_id, message="away", now_us=at(S)), {"error": AWAY}
    ),
    Call(
        transitions.REFUSE,
        lambda rows, _: [rows.store.jobs.refuse_waiting(name, message="away", now_us=at(S)) for name in rows.queues],
        {"error": AWAY}, "all of a queue", sources=(State.AVAILABLE,),
    ),
    Call(transitions.MANUAL_RETRY, retry),
    Call(
        transitions.MANUAL_RETRY, lambda rows, _: rows.store.jobs.retry_failed(None, now_us=at(S)), title="all that failed",
        sources=(State.DISCARDED,),
    ),
    Call(transitions.REPAIR, mend, title="no worker", spoil="UPDATE jobs SET worker_id = NULL WHERE state = 'running'"),
    Call(transitions.REPAIR, mend, title="no start", spoil="UPDATE jobs SET started_at = NULL WHERE state = 'running'"),
]  # fmt: skip


def put_into(rows: Rows, state: State, call: Call, *, on_device: bool) -> int:
    """Make a job in a state, by the store's own methods, that has been through as much as it can have been."""
    queue = "ai" if on_device else "work"
    rows.queue(queue, gpu=on_device)
    options = {"max_attempts": 9, **call.options}
    if state is State.SCHEDULED:
        return rows.enqueue(queue, due_s=call.due_s, **options)
    job_id = rows.enqueue_sized(queue, 1, "m", **options) if on_device else rows.enqueue(queue, **options)

    def start() -> Lease:
        lease = rows.placed(job_id, s=1) if on_device else rows.claim_one(queue, s=1)
        rows.store.attempts.report([Report(job_id, lease.lease, progress=(0.5, "half"), output_tokens=9)])
        return lease

    lease = start()
    rows.postpone(lease, "retried", due_s=1, error=EARLIER, s=1)
    rows.store.attempts.release_device(job_id, lease.lease)
    if state is not State.AVAILABLE:
        lease = start()
    if state is State.RETRYABLE:
        rows.postpone(lease, "snoozed", due_s=call.due_s, error=BOOM, waiting_for="ollama", s=2)
    elif state is State.COMPLETED:
        rows.complete(lease, s=2)
    elif state in FINISHED:
        rows.end(lease, state, s=2)
    elif state is State.RUNNING and call.is_asked:
        rows.store.jobs.cancel(job_id, now_us=at(2))
    if call.spoil:
        rows.store.engine.writer.run(lambda connection: connection.execute(call.spoil))
    assert rows.state(job_id) is state
    return job_id


def test_the_tokens_of_an_attempt_are_counted_once_though_the_next_one_says_nothing(make_rows: Callable[[], Rows]) -> None:
    """As when a worker stops twice, the second time before the first word; a queue without a GPU is no exception."""
    rows = make_rows()
    job_id = rows.enqueue()
    lease = rows.claim_one(s=1)
    rows.store.attempts.report([Report(job_id, lease.lease, "some words", output_tokens=40)])
    for s in (2, 4):
        rows.postpone(lease, "released", s=s)
        lease = rows.claim_one(s=s + 1)
    with rows.store.engine.lent() as connection:
        assert queries.partial_output(connection, job_id) == PartialOutput(1, "some words", 40)


def test_a_partial_output_has_the_tokens_of_all_its_attempts_and_the_model_that_wrote_it(make_rows: Callable[[], Rows]) -> None:
    rows = make_rows()
    job_id = rows.enqueue_sized("work", 1, "small:latest")
    first = rows.place(job_id, s=1)
    assert first is not None
    rows.store.attempts.report([Report(job_id, first.lease, "some", output_tokens=40)])
    rows.postpone(first, "preempted", due_s=2, s=2)
    rows.store.attempts.release_device(job_id, first.lease)
    second = rows.place(job_id, s=3)
    assert second is not None
    rows.store.attempts.report([Report(job_id, second.lease, " words", output_tokens=100, output_lease=first.lease)])
    rows.postpone(second, "preempted", due_s=4, s=4)
    with rows.store.engine.lent() as connection:
        assert queries.partial_output(connection, job_id) == PartialOutput(first.lease, "some words", 100, "small:latest")


def counters(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(connection.execute("SELECT state, sum(count) FROM counters GROUP BY state"))


def assert_call(rows: Rows, call: Call, state: State, *, on_device: bool) -> None:
    """Make the call on a job in a state, and compare its row and the counters with the table."""
    job_id = put_into(rows, state, call, on_device=on_device)
    with rows.store.engine.lent() as connection:
        before, counted = row_of(connection, job_id), counters(connection)
    call.make(rows, job_id)
    with rows.store.engine.lent() as connection:
        found, counts = row_of(connection, job_id), counters(connection)
    if call.is_rescue and found["device"]:
        assert (found["worker_id"], found["lease"]) == ("rescuer", before["lease"] + 1 + (state in call.all_sources))
        found.update(worker_id=before["worker_id"], lease=found["lease"] - 1)
    if state in call.all_sources:
        assert found == after(call.move, before, call.given, at(S))
        for finished, change in call.move.counted(state).items():
            counted[finished] = counted.get(finished, 0) + change
    else:
        assert found == {**before, **call.otherwise.get(state, {})}, f"a {state} job is not to be changed"
    assert counts == counted
    assert_only_what_its_state_has(found)
    assert_counters_are_true(rows.store)
    spoilt = {"running"} if call.spoil and state is not State.RUNNING else set()
    assert {finding.check for finding in check_file(rows.store.engine.path)} <= spoilt


PLAYED = [
    pytest.param(call, on_device, id=f"{call.name}{' on a device' if on_device else ''}")
    for call in CALLS
    for on_device in ((False, True) if call.on_device is None else (call.on_device,))
]


@pytest.mark.parametrize(("call", "on_device"), PLAYED)
def test_a_call_moves_a_job_as_the_table_says_or_leaves_it_alone(
    make_rows: Callable[[], Rows], call: Call, on_device: bool
) -> None:
    for state in State:
        assert_call(make_rows(), call, state, on_device=on_device)


def test_every_transition_is_made_by_some_call_from_each_of_its_sources() -> None:
    made = {(call.move.name, source) for call in CALLS for source in call.all_sources}
    assert made == {(move.name, source) for move in TRANSITIONS for source in move.sources}
