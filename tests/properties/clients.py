"""Owns the rules by which clients, and time, act: enqueue, cancel, retry, pause, wait, prune; compares nothing else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st

from gpuqueue import StateError
from tests.properties.model_jobs import FINISHED, SECOND, WAITING
from tests.properties.offers import COMPUTING_JOBS, JOBS, PLAIN_JOBS, REQUESTS, WAYS
from tests.properties.play import PICK, Play, step
from tests.properties.scene import ON_DEVICES, PLAIN


class Clients(Play):
    """What applications and people do."""

    # What makes jobs and works on them comes in several rules, because each rule is as likely as any other.

    @step(jobs=st.lists(JOBS, min_size=1, max_size=4), way=st.sampled_from(WAYS), at=st.sampled_from([None, None, -10, 30]))
    def enqueue(self, jobs: list[Any], way: str, at: int | None) -> None:
        self.enqueues(jobs, way, at)

    @step(jobs=st.lists(PLAIN_JOBS, min_size=1, max_size=4))
    def enqueue_plain_jobs(self, jobs: list[Any]) -> None:
        self.enqueues(jobs, "using", None)

    @step(jobs=st.lists(COMPUTING_JOBS, min_size=1, max_size=4))
    def enqueue_computing_jobs(self, jobs: list[Any]) -> None:
        self.enqueues(jobs, "by name", None)

    @step(jobs=st.lists(REQUESTS, min_size=1, max_size=4))
    def enqueue_requests(self, jobs: list[Any]) -> None:
        self.enqueues(jobs, "using", None)

    @step(jobs=st.lists(JOBS, min_size=1, max_size=2), way=st.sampled_from(["connection", "session", "many in a session"]))
    def enqueue_and_roll_back(self, jobs: list[Any], way: str) -> None:
        with self.transaction(way, commits=False) as connection:
            self.store_jobs(jobs, way, connection)

    @step(pick=PICK)
    def cancel(self, pick: int) -> None:
        if (job_id := self.any_job(pick)) is not None:
            before = self.model.cancel(job_id)
            assert self.gq.job(job_id).cancel() is (before not in FINISHED)

    @step(pick=PICK)
    def retry(self, pick: int) -> None:
        if (job_id := self.any_job(pick)) is None:
            return
        if self.model.may_retry(job_id):
            self.model.retry(job_id)
            self.gq.job(job_id).retry()
        else:
            with pytest.raises(StateError):
                self.gq.job(job_id).retry()

    @step(queue=st.sampled_from([*PLAIN, *ON_DEVICES]), for_s=st.sampled_from([None, 30, 400, "resume", "resume"]))
    def pause_or_resume(self, queue: str, for_s: Any) -> None:
        if for_s == "resume":
            assert self.gq.resume(queue, by="me") is self.model.resume(queue)
            return
        self.model.pause(queue, None if for_s is None else self.clock.now + for_s * SECOND)
        until = for_s if for_s != 400 else self.gq.now() + timedelta(seconds=400)
        self.gq.pause(queue, until=until, reason="a test", by="me")

    @step(pick=PICK)
    def a_caller_waits(self, pick: int) -> None:
        """Who waits for a result ends the job whose time is over, and the one that nobody can run."""
        if (job_id := self.any_job(pick, *WAITING)) is None:
            return
        if pick % 2:
            refused = self.store.jobs.refuse_one(job_id, message="nobody serves it", now_us=self.clock.now)
            assert refused is self.model.refuse_one(job_id)
        else:
            self.store.jobs.move_due(now_us=self.clock.now)
            self.model.move_due()

    @step(seconds=st.sampled_from([1, 5, 12, 25, 31, 60, 300, 3600, 20_000]))
    def time_passes(self, seconds: int) -> None:
        self.tick(seconds * SECOND)

    @step(age_s=st.sampled_from([0, 60]), limit=st.sampled_from([1, 3, 1000]))
    def prune(self, age_s: int, limit: int) -> None:
        for state in FINISHED:
            self.prunes(state, age_s, limit)
