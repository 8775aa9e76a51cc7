"""Finding what was enqueued: by task, arguments and options, and what is told when it is not there."""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import ANY

import pytest

from gpuqueue import UsageError
from gpuqueue.testing import assert_enqueued, assert_not_enqueued, eager, enqueued


@pytest.fixture
def gq(make_queue):
    return make_queue("[queues.mail]\n[queues.post]\n")


@pytest.fixture
def send(gq):
    @gq.task(name="send", queue="mail", priority=1)
    def send(to: str, copies: list[str] | tuple[str, ...] = (), task: str = "") -> None: ...

    send.enqueue(to="ana")
    send.using(queue="post", priority=5, delay="1h", timeout="9s", tags=["x"], expires_in="2h").enqueue(to="ben", task="b")
    send.enqueue(to="ana", copies=("cleo", "dan"))
    gq.enqueue_many([(gq.verb("print", queue="post"), {"pages": 2})])
    return send


def test_a_job_is_found_by_what_is_said_of_its_arguments(send):
    assert assert_enqueued(send).id == 3
    assert assert_enqueued(send, to="ana", copies=("cleo", "dan")).id == 3
    assert assert_enqueued(send, to="ben").state == "scheduled"
    assert assert_enqueued(send, task="b", to=ANY).id == 2
    assert [job.id for job in enqueued(send, to="ana")] == [1, 3]
    assert_not_enqueued(send, to="ana", copies=[])
    assert_not_enqueued(send, to="cleo")


def test_a_name_needs_the_queue_object(send, gq):
    assert assert_enqueued("print", gq, pages=2).queue == "post"
    assert_not_enqueued("unheard", gq)
    with pytest.raises(UsageError, match="'send' is a task's name: pass its queue object too"):
        assert_enqueued("send", to="ana")
    with pytest.raises(UsageError, match=r"send.*by name"):
        assert_enqueued(send, "ana")
    with pytest.raises(UsageError, match=r"7 is not a gpuqueue task"):
        assert_enqueued(7)


def test_options_of_using_count_and_no_others(send, gq):
    now = gq.job(2).record.scheduled_at
    for option in (
        {"queue": "post"}, {"priority": 5}, {"delay": "1h"}, {"at": now}, {"timeout": 9}, {"tags": ["x"]}, {"expires_in": "2h"},
        {"queue": "post", "priority": 5},
    ):  # fmt: skip
        assert [job.id for job in enqueued(send.using(**option))] == [2], option
    assert [job.id for job in enqueued(send.using(queue="mail"))] == [1, 2, 3]  # it is the task's own, and says nothing
    assert enqueued(send.using(queue="post", priority=6)) == []
    assert enqueued(send.using(delay="2h")) == []
    for option in ({"vram": "2GB"}, {"device": "gpu1"}, {"fallback": ["m"]}, {"max_attempts": 7}, {"at": now + timedelta(1)}):
        assert enqueued(send.using(**option)) == [], option


def test_a_job_that_has_ended_was_enqueued_all_the_same(send, gq):
    with eager(gq):
        send.enqueue(to="eve")
    assert assert_enqueued(send, to="eve").state == "completed"


def test_what_was_enqueued_instead_is_listed(send):
    with pytest.raises(AssertionError) as failed:
        assert_enqueued(send.using(queue="post"), to="ana")
    assert str(failed.value) == (
        "no job of send(to='ana') with queue='post' was enqueued; these jobs were:\n"
        "  job 1: send(to='ana') in mail, available\n"
        "  job 2: send(to='ben', task='b') in post, scheduled\n"
        "  job 3: send(to='ana', copies=['cleo', 'dan']) in mail, available\n"
        "  job 4: print(pages=2) in post, available"
    )
    with pytest.raises(AssertionError) as failed:
        assert_not_enqueued(send, to="ben")
    assert str(failed.value) == "a job of send(to='ben') was enqueued:\n  job 2: send(to='ben', task='b') in post, scheduled"


def test_nothing_is_told_too_and_of_many_not_all(gq):
    note = gq.task(name="note")(lambda: None)
    with pytest.raises(AssertionError, match=r"^no job of note\(\) was enqueued; no job was enqueued at all$"):
        assert_enqueued(note)
    gq.enqueue_many([(gq.verb("other"), {})] * 520)
    first = note.enqueue()
    gq.enqueue_many([(gq.verb("other"), {})] * 520)
    assert assert_enqueued(note).id == first.id
    with pytest.raises(AssertionError, match=r"… and 1020 more$"):
        assert_not_enqueued("other", gq)


def test_an_argument_that_the_task_does_not_take_is_an_error(send):
    for find in (enqueued, assert_enqueued, assert_not_enqueued):
        with pytest.raises(UsageError, match=r"send: unknown argument 'too' \(did you mean 'to'\?\)"):
            find(send, too="ana")
