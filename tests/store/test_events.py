"""Events and their followers: none is missed, none is told twice, and without a follower plain jobs write none."""

from __future__ import annotations

import sqlite3
import threading

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.units import from_us
from gpuqueue.domain.view import Pause
from gpuqueue.store import open_store
from gpuqueue.store.sqlite import events
from gpuqueue.store.store import Store
from tests.store.rows import BOOM, GB, Rows, at


def names(rows: Rows, follower: str = "f", limit: int = 200) -> list[str]:
    return [event.name for event in rows.store.followers.take(follower, limit=limit)]


def test_without_a_follower_plain_jobs_write_no_events(rows: Rows) -> None:
    before = rows.one("SELECT count(*) FROM events")
    rows.enqueue()
    rows.enqueue()
    first, second = rows.claim()
    rows.complete(first)
    rows.postpone(second, due_s=5)
    rows.store.jobs.move_due(now_us=at(9))
    assert rows.one("SELECT count(*) FROM events") == before
    assert names(rows) == [], "who does not follow is told nothing"


def test_a_follower_is_told_of_every_transition_from_its_registration_on(rows: Rows) -> None:
    early = rows.enqueue()
    rows.store.followers.add("f")
    later = rows.enqueue(due_s=5, max_attempts=2)
    rows.complete(rows.claim_one())
    rows.postpone(rows.claim_one(s=5), due_s=20, s=6, error=BOOM)
    rows.store.jobs.move_due(now_us=at(20))
    rows.store.jobs.cancel(later, now_us=at(21))
    rows.store.jobs.retry(later, now_us=at(22))
    events = rows.store.followers.take("f", limit=200)
    told = [(event.job_id, event.name, event.data["state"]) for event in events]
    assert told == [
        (later, "job_enqueued", "scheduled"),
        (early, "attempt_started", "running"),
        (early, "job_finished", "completed"),
        (later, "job_promoted", "available"),
        (later, "attempt_started", "running"),
        (later, "attempt_finished", "retryable"),
        (later, "job_promoted", "available"),
        (later, "job_finished", "cancelled"),
        (later, "job_promoted", "available"),
    ]
    started = events[1]
    assert (started.at, started.queue) == (from_us(at(0)), "work")
    assert started.data == {
        "state": "running", "before": "available", "attempt": 1, "lease": 1, "worker": "w", "device": None,
        "reserved_bytes": 0, "task": "app.task", "preempted": False, "waited_s": 0.0, "ran_s": None,
    }  # fmt: skip
    assert names(rows) == []


def test_a_follower_is_told_how_long_each_attempt_waited_and_ran(rows: Rows) -> None:
    rows.store.followers.add("f")
    rows.enqueue(due_s=5, max_attempts=3)
    rows.store.jobs.move_due(now_us=at(6))
    rows.postpone(rows.claim_one(s=7.5), "preempted", due_s=8, s=8)
    rows.postpone(rows.claim_one(s=10), due_s=20, s=14)
    rows.store.jobs.move_due(now_us=at(21))
    lease = rows.claim_one(s=23)
    rows.complete(lease, s=23.5)
    told = [
        (event.name, event.data["waited_s"], event.data["ran_s"], event.data["preempted"])
        for event in rows.store.followers.take("f", limit=200)
        if "waited_s" in event.data
    ]
    waits = [(waited_s, ran_s, preempted) for name, waited_s, ran_s, preempted in told if name == "attempt_started"]
    assert waits == [(2.5, None, False), (2.0, None, False), (3.0, None, False)], "from its time, and from when it was given back"
    assert told[-1] == ("job_finished", None, 0.5, False)
    ends = [(ran_s is not None, preempted) for name, _, ran_s, preempted in told if name == "attempt_finished"]
    assert ends == [(True, True), (True, False)]
    assert all(ran_s is None for name, _, ran_s, _ in told if name == "job_promoted")


def test_a_follower_is_told_when_a_model_that_is_not_loaded_is_needed(rows: Rows) -> None:
    rows.store.followers.add("f")
    rows.queue("ai", gpu=True)
    for model in ("m", "m", "n"):
        lease = rows.placed(rows.enqueue_sized("ai", 2, model), s=3)
        rows.complete(lease, s=4)
        rows.store.attempts.release_device(lease.job_id, lease.lease)
        residents = (Resident(model, 2 * GB, 2 * GB),)
        rows.store.backends.publish_reading("gpu0", reading=None, residents=residents, now_us=at(5))
    told = [event for event in rows.store.followers.take("f", limit=200) if event.name == "model_loading"]
    assert [event.data for event in told] == [{"device": "gpu0", "model": "m"}, {"device": "gpu0", "model": "n"}]
    assert {event.at for event in told} == {from_us(at(3))}


def test_a_follower_is_told_when_a_device_is_given_back(rows: Rows) -> None:
    rows.store.followers.add("f")
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 2, "m")
    lease = rows.placed(job_id)
    rows.complete(lease)
    assert names(rows) == ["job_enqueued", "attempt_started", "model_loading", "job_finished"], "its memory is still coming back"
    assert rows.store.attempts.release_device(job_id, lease.lease)
    (told,) = rows.store.followers.take("f", limit=200)
    assert (told.name, told.job_id, told.queue) == ("device_released", job_id, "ai")
    assert told.data == {"device": "gpu0", "reserved_bytes": 2 * GB, "lease": lease.lease}
    rows.complete(rows.placed(rows.enqueue_sized("ai", 2)))
    (orphan,) = rows.rescue()
    rows.store.attempts.release_device(orphan.job_id, orphan.lease)
    assert names(rows)[-1] == "device_released", "also when a rescuer cleans up"


def test_a_new_follower_replaces_the_triggers_of_an_older_version(rows: Rows) -> None:
    rows.store.followers.add("f")
    connection = sqlite3.connect(rows.store.engine.path)
    with connection:
        connection.execute("DROP TRIGGER jobs_released")
        connection.execute("DROP TRIGGER jobs_enqueued")
        connection.execute("CREATE TRIGGER jobs_enqueued AFTER INSERT ON jobs BEGIN SELECT 1; END")
    connection.close()
    rows.store.followers.add("f")
    rows.queue("ai", gpu=True)
    lease = rows.placed(rows.enqueue_sized("ai", 2))
    rows.complete(lease)
    rows.store.attempts.release_device(lease.job_id, lease.lease)
    assert names(rows) == ["job_enqueued", "attempt_started", "job_finished", "device_released"]


def test_each_follower_reads_at_its_own_pace(rows: Rows) -> None:
    rows.store.followers.add("slow")
    rows.enqueue()
    rows.store.followers.add("late")
    rows.store.followers.add("slow")
    rows.enqueue()
    assert names(rows, "late") == ["job_enqueued"]
    assert names(rows, "slow", limit=1) == ["job_enqueued"]
    assert names(rows, "slow") == ["job_enqueued"]


def test_the_triggers_go_with_the_last_follower(rows: Rows) -> None:
    rows.store.followers.add("a")
    rows.store.followers.add("b")
    rows.store.followers.remove("a")
    rows.enqueue()
    assert names(rows, "b") == ["job_enqueued"]
    rows.store.followers.remove("b")
    count = rows.one("SELECT count(*) FROM events")
    rows.enqueue()
    assert rows.one("SELECT count(*) FROM events") == count
    assert rows.one("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'") == 0


def test_several_takers_of_one_follower_get_each_event_once(rows: Rows) -> None:
    rows.store.followers.add("f")
    for _ in range(200):
        rows.enqueue()
    others = [open_store(rows.store.engine.path) for _ in range(3)]
    taken: list[int] = []

    def take(store: Store) -> None:
        while events := store.followers.take("f", limit=7):
            taken.extend(event.id for event in events)

    threads = [threading.Thread(target=take, args=(store,)) for store in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in others:
        store.close()
    assert len(taken) == 200
    assert len(set(taken)) == 200


def test_pruning_keeps_what_a_follower_has_not_read_and_never_gives_an_id_again(rows: Rows) -> None:
    rows.store.followers.add("f")
    for number in range(5):
        rows.enqueue(s=number)
    (first, *_rest) = rows.store.followers.take("f", limit=2)
    assert rows.store.followers.prune(before_us=at(100), limit=5000) >= 2
    assert rows.one("SELECT min(id) FROM events") == first.id + 2
    assert len(rows.store.followers.take("f", limit=200)) == 3
    rows.store.followers.remove("f")
    newest = rows.one("SELECT max(id) FROM events")
    rows.store.followers.prune(before_us=at(100), limit=5000)
    assert rows.one("SELECT count(*) FROM events") == 1
    rows.store.queues.pause("work", Pause("me", "", from_us(at(200)), None))
    assert rows.one("SELECT max(id) FROM events") == newest + 1


def test_young_events_are_kept(rows: Rows) -> None:
    rows.store.followers.add("f")
    for number in (0, 50, 60):
        rows.enqueue(s=number)
    rows.store.followers.take("f", limit=200)
    rows.store.followers.prune(before_us=at(50), limit=5000)
    assert rows.one("SELECT count(*) FROM events WHERE name = 'job_enqueued'") == 2


def test_what_a_row_cannot_tell_is_written_also_without_a_follower(rows: Rows) -> None:
    rows.store.followers.add("f")
    rows.store.followers.remove("f")
    rows.one("SELECT count(*) FROM events")
    rows.enqueue()
    rows.claim_one()
    rows.rescue(executing=[])
    rows.store.queues.pause("work", Pause("me", "why", from_us(at(3)), None))
    rows.store.queues.resume("work", by="you", now_us=at(4))
    rows.store.queues.note_holds({"work": (Hold("window", "closed"),)}, now_us=at(5))
    rows.store.queues.note_holds({"work": (Hold("window", "still closed"),)}, now_us=at(6))
    rows.store.queues.note_holds({"work": ()}, now_us=at(7))
    rows.store.backends.lost("ollama", error="gone", probe_every_s=1, longest_s=9, now_us=at(8))
    rows.store.backends.lost("ollama", error="gone", probe_every_s=1, longest_s=9, now_us=at(9))
    rows.store.backends.answered("ollama", worked=False, now_us=at(10))
    rows.store.backends.publish_reading("gpu0", reading=Reading(from_us(at(11)), lost="no driver"), residents=None, now_us=at(11))
    rows.store.backends.publish_reading("gpu0", reading=Reading(from_us(at(12))), residents=None, now_us=at(12))
    with rows.store.engine.lent() as connection:
        found = [name for (name,) in connection.execute("SELECT name FROM events ORDER BY id")]
    assert found == [
        "worker_started", "lease_rescued", "queue_paused", "queue_resumed", "queue_held", "queue_released",
        "backend_lost", "backend_recovered", "device_lost", "device_recovered",
    ]  # fmt: skip


def test_a_reading_that_was_overtaken_changes_nothing_unless_the_clock_was_set_back(rows: Rows) -> None:
    def publish(at_s: float, lost: str | None) -> str | None:
        reading = Reading(from_us(at(at_s)), lost=lost)
        return rows.store.backends.publish_reading("gpu0", reading=reading, residents=None, now_us=at(at_s))

    assert publish(100, "no driver") == "device_lost"
    assert publish(101, None) == "device_recovered"
    assert publish(100, "no driver") is None
    assert publish(101, "no driver") == "device_lost", "one of the same moment counts"
    assert publish(20, None) == "device_recovered", "no thread was on its way for that long"


def test_a_backend_that_answers_probes_and_fails_jobs_is_asked_ever_more_rarely(rows: Rows) -> None:
    waits = []
    for outage in range(5):
        rows.store.backends.lost("o", error="x", probe_every_s=1, longest_s=6, now_us=at(100 * outage))
        waits.append((rows.one("SELECT retry_at FROM backends") - at(100 * outage)) / 1e6)
        assert rows.store.backends.answered("o", worked=False, now_us=at(100 * outage + 50))
    assert waits == [1, 2, 4, 6, 6]
    assert not rows.store.backends.answered("o", worked=True, now_us=at(900))
    rows.store.backends.lost("o", error="x", probe_every_s=1, longest_s=6, now_us=at(901))
    assert rows.one("SELECT retry_at FROM backends") == at(902)


def test_a_follower_that_never_comes_back_is_forgotten_and_nothing_is_kept_for_it(rows: Rows) -> None:
    rows.store.followers.add("gone")
    rows.store.followers.add("here")
    rows.enqueue(s=1)
    rows.enqueue(s=50)
    with rows.store.engine.lent() as connection:
        (first, _second) = events.after(connection, "here", limit=9) or []
    rows.store.followers.advance("here", first.id)
    rows.store.followers.prune(before_us=at(100), forget_before_us=at(1), limit=5000)
    assert rows.one("SELECT count(*) FROM followers") == 2
    assert rows.store.followers.prune(before_us=at(100), forget_before_us=at(10), limit=5000) == 1
    assert rows.store.followers.take("gone", limit=200) == []
    assert [event.at for event in rows.store.followers.take("here", limit=200)] == [from_us(at(50))], "it read in time"
