"""Jobs are found by a part of their task's name, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuqueue import GPUQueue
from gpuqueue.domain.job import State
from gpuqueue.store.sqlite import queries, search


@pytest.fixture
def gq(tmp_path: Path) -> Iterator[GPUQueue]:
    """Jobs 1 to 6: a bill, a letter, a bill and so on; the last two wait for their time."""
    with GPUQueue(tmp_path / "jobs.db", discover_plugins=False) as gq:
        bill = gq.task(name="shop.Bills.send", queue="first")(lambda: None)
        letter = gq.task(name="shop.letters.send", queue="second")(lambda: None)
        gq.enqueue_many([(bill, {}), (letter, {})] * 2)
        bill.using(delay="1h").enqueue()
        letter.using(delay="1h").enqueue()
        yield gq


def found(gq: GPUQueue, text: str, **asked: object) -> tuple[list[int], int | None]:
    with gq.store.engine.lent() as connection:
        jobs, looked_to = search.by_task(connection, text, **{"limit": 9, **asked})  # type: ignore[arg-type]
    return [job.id for job in jobs], looked_to


def test_a_part_of_the_name_is_enough_in_any_case_of_its_letters(gq: GPUQueue) -> None:
    assert found(gq, "bills") == ([5, 3, 1], None)
    assert found(gq, "LETTERS.S") == ([6, 4, 2], None)
    assert found(gq, "%") == found(gq, "b_lls") == ([], None)


def test_queue_and_state_narrow_the_search(gq: GPUQueue) -> None:
    assert found(gq, "send", queue="first") == ([5, 3, 1], None)
    assert found(gq, "send", state=State.SCHEDULED) == ([6, 5], None)
    assert found(gq, "send", queue="second", state=State.AVAILABLE, after=4) == ([2], None)


def test_a_page_says_where_the_next_one_begins(gq: GPUQueue) -> None:
    assert found(gq, "bills", limit=2) == ([5, 3], 3)
    assert found(gq, "bills", limit=2, after=3) == ([1], None)
    assert found(gq, "bills", limit=1, before=1) == ([3], 3)
    assert found(gq, "bills", limit=3, before=1) == ([5, 3], None)
    assert found(gq, "send", limit=6) == ([6, 5, 4, 3, 2, 1], None)


def test_a_search_ends_after_so_many_jobs_and_goes_on_behind_them(gq: GPUQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "LOOKED_AT", 2)
    assert found(gq, "bills") == ([5], 5)
    assert found(gq, "bills", after=5) == ([3], 3)
    assert found(gq, "bills", after=3) == ([1], None)


def test_the_newest_of_a_state_are_listed_alike_whether_few_or_many_have_it(
    gq: GPUQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(**asked: object) -> list[int]:
        return [job.id for job in gq.jobs(**asked)]  # type: ignore[arg-type]

    asked = ({"state": "available"}, {"state": "scheduled", "queue": "first"}, {"state": "available", "after": 4, "limit": 2})
    few = [listed(**one) for one in asked]
    assert few == [[4, 3, 2, 1], [5], [3, 2]]
    monkeypatch.setattr(queries, "FEW", 0)
    assert [listed(**one) for one in asked] == few
