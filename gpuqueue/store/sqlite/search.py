"""Finds jobs by their task's name, examining a bounded number of rows at a time; changes nothing.

There is no index on task names: it would slow down every enqueue for the sake of a rare search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuqueue.domain.job import LOOKED_AT, Found, Job, State
from gpuqueue.store.sqlite.queries import get_job, newest

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements


def by_task(
    connection: Statements,
    text: str,
    *,
    queue: str | None = None,
    state: State | None = None,
    limit: int,
    after: int | None = None,
    before: int | None = None,
) -> Found:
    """Find jobs with a string in their task's name, ignoring case: the ones next to an id, or the newest.

    Needs one read transaction.
    """
    selected, values = newest(connection, queue=queue, state=state, after=after, before=before)
    wanted = text.casefold()
    found: list[Job] = []
    seen_count, last = 0, None
    rows = connection.execute(f"SELECT id, task FROM jobs {selected} LIMIT ?", (*values, LOOKED_AT + 1))
    for job_id, task in rows:
        if len(found) == limit or seen_count == LOOKED_AT:
            break
        seen_count, last = seen_count + 1, job_id
        if wanted in task.casefold():
            found.append(get_job(connection, job_id))
    else:
        last = None
    return Found(found if before is None else found[::-1], last)
