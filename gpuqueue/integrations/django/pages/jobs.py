"""Lists jobs: a page of the newest, filtered and searched, cheap among a million; changes no job."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuqueue.domain.errors import UnknownJob, UnknownQueue, UsageError
from gpuqueue.domain.job import LOOKED_AT, Job, State
from gpuqueue.domain.timeline import progress
from gpuqueue.domain.units import format_duration
from gpuqueue.integrations.django.pages.sources import keys_of
from gpuqueue.integrations.django.pages.wording import Moment, Text

if TYPE_CHECKING:
    from gpuqueue.integrations.django.queues import DjangoQueue

__all__ = ["PER_PAGE", "job_list", "rows_of"]

PER_PAGE = 50
SHOWN_OF_ERROR = 160  # characters
LARGEST_ID = 2**63 - 1


class Page(NamedTuple):
    """Some jobs, the newest first; `next_id` is where the next page starts in the same direction, None if there is none."""

    jobs: list[Job]
    next_id: int | None = None
    looked_far: bool = False  # the search stopped before it found enough


def job_list(gq: DjangoQueue, *, queue: str, state: str, text: str, after: str, before: str) -> dict[str, Any]:
    """Show a page of jobs, the newest first; each filter is as the user typed it, "" for none. Raises: UsageError."""
    behind, ahead = (_number(given, what) if given else None for given, what in ((after, "after"), (before, "before")))
    if queue and queue not in (names := gq.queue_names()):
        raise UnknownQueue(queue, names)
    if state and state not in list(State):
        raise UsageError(f"unknown state {state!r}. States: {', '.join(State)}")
    newer = older = None
    if (job_id := text.removeprefix("#")).isdecimal():
        page = Page(_one(gq, job_id))
    else:
        page = _page(gq, queue, state, text, behind, ahead)
        if ahead is not None and page.next_id is None:
            page, behind, ahead = _page(gq, queue, state, text, None, None), None, None  # a whole page, from the newest
        if ahead is not None:
            newer, older = page.next_id, page.jobs[-1].id if page.jobs else min(ahead + 1, LARGEST_ID)
        else:
            older = page.next_id
        if behind is not None:
            newer = page.jobs[0].id if page.jobs else max(behind - 1, 0)
    counts = gq.counts()
    return {
        "jobs": rows_of(gq, page.jobs),
        "newer": newer,
        "older": older,
        "looked_far": page.looked_far,
        "looked_at": LOOKED_AT,
        "known_queues": [(name, found.get(state, 0) if state else sum(found.values())) for name, found in counts.items()],
        "known_states": [
            (str(one), sum(found.get(one, 0) for name, found in counts.items() if queue in ("", name))) for one in State
        ],
    }


def _page(gq: DjangoQueue, queue: str, state: str, text: str, after: int | None, before: int | None) -> Page:
    wanted: dict[str, Any] = {"queue": queue or None, "state": State(state) if state else None, "after": after, "before": before}
    with gq.store.snapshot() as reads:
        if text:
            found = reads.find_by_task(text, limit=PER_PAGE, **wanted)
            return Page(found.jobs, found.looked_to, found.looked_to is not None and len(found.jobs) < PER_PAGE)
        jobs = reads.jobs(limit=PER_PAGE + 1, **wanted)
    if len(jobs) <= PER_PAGE:
        return Page(jobs)
    return Page(jobs[:-1], jobs[-2].id) if before is None else Page(jobs[1:], jobs[1].id)


def _one(gq: DjangoQueue, job_id: str) -> list[Job]:
    try:
        return [gq.job(_number(job_id, "the id")).record]
    except UnknownJob:
        return []


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:20]) <= LARGEST_ID):
        raise UsageError(f"{what} must be a job id, not {text!r}")
    return int(text)


def rows_of(gq: DjangoQueue, jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """Show jobs as lines of a table."""
    now, key_of = gq.now(), keys_of(gq.alias)
    return [
        {
            "key": key_of(job.id),
            "id": str(job.id),
            "state": str(job.state),
            "queue": job.queue,
            "queue_key": key_of(job.queue),
            "task": job.task,
            "model": job.expected_model,
            "attempt": job.attempt,
            "max_attempts": job.max_attempts,
            "enqueued": Moment(job.enqueued_at, now),
            "about": _about(job, now),
        }
        for job in jobs
    ]


def _about(job: Job, now: datetime) -> str:
    if job.error is not None and job.state is not State.COMPLETED:
        first = Text.of(job.error.message.partition("\n")[0]).shown
        return first if len(first) <= SHOWN_OF_ERROR else f"{first[:SHOWN_OF_ERROR]} …"
    if job.finished_at and job.started_at:
        return f"took {format_duration((job.finished_at - job.started_at).total_seconds())}"
    if job.started_at and job.state is State.RUNNING:
        lasts = f"for {format_duration(max(0.0, (now - job.started_at).total_seconds()))}"
        stops = ["was asked to stop"] if job.cancel_requested else []
        return ", ".join([*filter(None, [progress(job)]), lasts, *stops])
    if job.state in (State.SCHEDULED, State.RETRYABLE):
        return f"due {Moment(job.scheduled_at, now)}"
    return ""
