"""Owns the state machine: its rules play clients, workers, backends and time against the real store and the model at once.

After each step everything that can be observed is compared with the model. At the end of each run everything comes to
rest: backend and devices are back, one worker serves all, and time passes. Then the promise of the whole must hold:
whatever the order of arrivals, losses, preemptions, crashes and recoveries, every job ends, none twice, no queue stays
held without a true reason, reservations return to zero.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis.stateful import invariant

from gpuqueue import JobCancelled, JobExpired, JobFailed, ServiceUnavailable
from gpuqueue.domain.job import Job, State
from gpuqueue.domain.units import to_us
from gpuqueue.store.sqlite import queries
from gpuqueue.store.sqlite.outcomes import abandoned_workers, reservations
from tests import history
from tests.properties.clients import Clients
from tests.properties.model_jobs import FINISHED, SECOND, by_job
from tests.properties.play import PICK, choose, step
from tests.properties.preemptions import Preemptions
from tests.properties.troubles import Troubles
from tests.properties.workers import Workers


class Machine(Clients, Workers, Preemptions, Troubles):
    """All rules together."""

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "model"):
            return
        model = self.model
        handles = self.gq.jobs(limit=10_000)
        assert [handle.id for handle in handles] == sorted(model.jobs, reverse=True)
        for handle in handles:
            found, expected = as_told(handle.record), model.jobs[handle.id]
            wrong = {key: (value, expected[key]) for key, value in found.items() if value != expected[key]}
            assert not wrong, f"job {handle.id}, as the store and as the model says: {wrong}"
        assert self.gq.counts() == model.counts()
        holds = {
            queue: {hold.reason: hold.until and to_us(hold.until) for hold in found} for queue, found in self.gq.holds().items()
        }
        assert holds == model.holds(), f"held as the store and as the model says: {holds}, {model.holds()}"
        self.compare_events()
        with self.store.engine.lent() as connection:
            assert set(abandoned_workers(connection)) == model.abandoned_by()
            found_taken = reservations(connection)
        taken = {item.job_id: (item.device, item.reserved_bytes, item.running, item.preemptible) for item in found_taken}
        assert taken == {
            job["id"]: (job["device"], job["reserved"], job["state"] == "running", job["preemptible"])
            for job in model.jobs.values()
            if job["device"] is not None
        }
        asked = {item.job_id for item in found_taken if item.running and item.preempt_requested}
        expected_asked = {job["id"] for job in model.jobs.values() if job["state"] == "running" and job["asked"] == job["lease"]}
        assert asked == expected_asked, f"asked to make room, as the store and as the model says: {asked}, {expected_asked}"
        self.is_healthy = True

    @step(pick=PICK)
    def look_closely(self, pick: int) -> None:
        if (job_id := self.any_job(pick)) is not None:
            self.looks_closely(job_id)
        queue, state = choose([None, *self.model.queues], pick), choose([None, *State], pick)
        after = choose([None, *self.model.jobs], pick)
        found = [handle.id for handle in self.gq.jobs(queue=queue, state=state, limit=1 + pick % 5, after=after)]
        jobs = [job for job in self.model.jobs.values() if queue in (None, job["queue"]) and state in (None, job["state"])]
        ids = sorted((job["id"] for job in jobs if after is None or job["id"] < after), reverse=True)
        assert found == ids[: 1 + pick % 5]

    def looks_closely(self, job_id: int) -> None:
        job, handle = self.model.jobs[job_id], self.gq.job(job_id)
        explanation = handle.explain()
        assert str(explanation).startswith(f"job {job_id}: ")
        reasons = {hold.reason for hold in explanation.reasons}
        expected = self.model.reasons(job_id)
        assert reasons == expected, f"job {job_id} waits, as the store and the model say: {reasons}, {expected}"
        with self.store.engine.lent() as connection:
            assert [line["outcome"] for line in queries.timeline(connection, job_id)] == job["outcomes"]
            assert [(lease, text) for _seq, lease, text in queries.chunks_after(connection, job_id, 0)] == job["output"]
        assert [(line.lease, line.message) for line in handle.logs()] == job["lines"]
        if job["state"] == "completed":
            assert handle.result(timeout_s=0) == job["result"]
        elif job["state"] in FINISHED:
            kinds = {"expired": JobExpired, "unavailable": ServiceUnavailable}
            with pytest.raises(JobCancelled if job["state"] == "cancelled" else kinds.get(job["code"], JobFailed)):
                handle.result(timeout_s=0)

    def compare_events(self) -> None:
        events = []
        while found := self.store.followers.take(history.FOLLOWER, limit=200):
            events += found
        self.events += events
        expected, self.model.events = self.model.events, []
        seen = [(event.name, event.job_id, event.queue, event.data) for event in events]
        expected_by_job, seen_by_job = by_job(expected), by_job(seen)
        assert seen_by_job.keys() == expected_by_job.keys()
        for job_id, mine in expected_by_job.items():
            keys = [event[3].keys() for event in mine]
            theirs = [
                (*event[:3], {key: event[3].get(key) for key in wanted})
                for event, wanted in zip(seen_by_job[job_id], keys, strict=True)
            ]
            assert theirs == mine

    # --- the end ---

    def teardown(self) -> None:
        if not hasattr(self, "gq"):
            return
        try:
            if self.is_healthy:
                self.come_to_rest()
        finally:
            self.gq.close()

    def come_to_rest(self) -> None:
        """Whatever the order of arrivals, losses, preemptions, crashes and recoveries: every job ends, none twice, no queue
        stays held without a true reason, reservations return to zero.
        """
        self.workers, self.dead = [], [*self.dead, *self.workers]
        for queue in self.model.queues:
            self.gq.resume(queue, by="me")
            self.model.resume(queue)
        self.backend_answers(worked=True)
        for name in self.workshop.cards:
            self.device_is(name, is_lost=False)
        self.reads_devices()
        self.starts_worker(None)
        (last,) = self.workers
        for dead in list(self.dead):
            self.rescues(dead, last, "none")
        self.collects_abandoned(last)
        for _ in range(300):
            unplaceable = (job for job in self.model.jobs.values() if job["sized"] and job["bytes"] > self.model.largest)
            never = [job for job in unplaceable if job["state"] not in FINISHED]
            if all(job["state"] in FINISHED or job in never for job in self.model.jobs.values()) and not last.clean_ups:
                break
            self.tick(600 * SECOND)
            self.extends(last)
            self.decides(last)
            self.exchanges(last, 8, 8)
            self.claims_for_devices(last)
            self.tick(3 * SECOND)
            self.claims_for_devices(last)  # now it may ask for room
            self.stops_what_is_asked(last, "makes room")
            for attempt in list(last.running):
                self.ends(last, attempt, "returns")
            for item in last.clean_ups:
                self.releases(item)
            last.clean_ups.clear()
            self.agree()
        waiting = {
            job["id"]: job["state"] for job in self.model.jobs.values() if job["state"] not in FINISHED and job not in never
        }
        assert not waiting, f"jobs that never end: {waiting}"
        for job in never:
            assert "never_fits" in {hold.reason for hold in self.gq.job(job["id"]).explain().reasons}, "it is said of such a job"
            assert self.gq.job(job["id"]).cancel()
            self.model.cancel(job["id"])
        self.agree()
        assert all(job["state"] in FINISHED for job in self.model.jobs.values()), "every job ends"
        for job_id, count in self.model.finishes.items():
            assert count <= 1 + self.model.retries[job_id], f"job {job_id} finished {count} times"
        assert not any(device.reservations for device in self.gq.view().devices.values()), "a device stays reserved"
        window = self.model.window_until()
        for queue, holds in self.gq.holds().items():
            true = {"window"} if window is not None and self.model.queues[queue].pause else set()
            assert {hold.reason for hold in holds} == true, f"queue {queue} stays held without a true reason: {holds}"
        for job in self.model.jobs.values():
            self.looks_closely(job["id"])
        settings = self.workshop.settings
        with self.store.engine.lent() as connection:
            history.check(
                self.events,
                connection,
                queues=settings.queues.values(),
                devices=settings.devices,
                completed=[job["id"] for job in self.model.jobs.values() if job["state"] == "completed"],
                retried=self.model.retries,
                asked=self.model.asked,
            )


def as_told(job: Job) -> dict[str, Any]:
    """A job as its handle shows it, in the model's words."""

    def us(moment: Any) -> int | None:
        return None if moment is None else to_us(moment)

    found = {
        "id": job.id, "queue": job.queue, "task": job.task, "state": str(job.state), "priority": job.priority,
        "attempt": job.attempt, "max_attempts": job.max_attempts, "lease": job.lease, "crashes": job.crashes,
        "preemptions": job.preemptions,
        "enqueued": us(job.enqueued_at), "due": us(job.scheduled_at), "started": us(job.started_at),
        "finished": us(job.finished_at), "expires": us(job.expires_at), "timeout_s": job.timeout_s, "worker": job.worker_id,
        "model": job.model, "bytes": job.demand_bytes, "device": job.device, "reserved": job.reserved_bytes,
        "arguments": job.arguments, "tags": job.tags, "code": job.error.code if job.error else None,
        "progress": job.progress, "note": job.progress_note,
    }  # fmt: skip
    # What is said of a job that runs or waits says nothing once it does neither.
    if job.state is State.RUNNING:
        found["cancel"] = job.cancel_requested
    if job.state is State.RETRYABLE:
        found["waiting_for"] = job.waiting_for
    return found
