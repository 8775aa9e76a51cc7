"""An empty file for a test: the application's queue object works on it, and its own file is as it was."""

from __future__ import annotations

from contextlib import closing

import pytest

from gpuqueue.testing import assert_not_enqueued, eager, enqueued, fresh, run_until_idle


@pytest.fixture
def note(gq):
    return gq.task(name="note", queue="mail")(lambda text: text)


def test_what_a_test_enqueues_and_finds_is_its_own(gq, note):
    before = note.enqueue(text="real")
    real = gq.database
    with fresh(gq) as same:
        assert same is gq
        assert gq.database != real
        assert_not_enqueued(note)
        job = note.enqueue(text="tested")
        run_until_idle(gq)
        assert job.result(timeout_s=0) == "tested"
        own = gq.database
        assert own.exists()
    assert not own.parent.exists()
    assert gq.database == real
    assert [job.id for job in enqueued(note)] == [before.id]
    assert before.refresh().state == "available", "the test's worker ran what was its own"


def test_each_block_begins_empty_and_a_queue_that_had_a_row_gets_one_in_each(gq, note):
    note.enqueue(text="real")
    for _ in range(2):
        with fresh(gq):
            note.enqueue(text="tested")
            assert gq.counts()["mail"]["available"] == 1
            assert [job.record.arguments for job in enqueued(note)] == [{"text": "tested"}]


def test_blocks_stand_inside_one_another_and_around_eager(gq, note):
    with fresh(gq), eager(gq):
        outer = gq.database
        assert note.enqueue(text="outer").result(timeout_s=0) == "outer"
        with fresh(gq):
            assert note.enqueue(text="inner").result(timeout_s=0) == "inner"
            assert len(enqueued(note)) == 1
        assert gq.database == outer
    assert enqueued(note) == []


def test_a_block_that_fails_leaves_nothing_behind(gq, note):
    with pytest.raises(RuntimeError), fresh(gq):
        own = gq.database
        note.enqueue(text="tested")
        raise RuntimeError
    assert not own.parent.exists()
    with closing(gq):
        assert enqueued(note) == []
