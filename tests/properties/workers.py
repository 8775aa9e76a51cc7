"""Owns the rules by which workers act: start, extend, claim, end attempts, report, clean up; none of them dies here."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from gpuqueue.domain.answers import Demand, Placement
from tests.properties.endings import ENDINGS
from tests.properties.offers import COMPUTING_JOBS, REQUESTS
from tests.properties.play import ANY_END, PICK, Play, choose, step
from tests.properties.scene import GB, ON_DEVICES, PLAIN, PlayedWorker, is_preemptible
from tests.store.rows import job_of

RESERVED = st.sampled_from([0, GB // 2, GB, 3 * GB, 5 * GB, 6 * GB])


class Workers(Play):
    """What worker processes do."""

    @precondition(lambda self: len(self.workers) < 3)
    @step(queues=st.sampled_from([None, None, (*PLAIN,), (*ON_DEVICES,), ("narrow", "batch")]))
    def start_worker(self, queues: tuple[str, ...] | None) -> None:
        self.starts_worker(queues)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, how=st.lists(st.sampled_from(sorted(ENDINGS)), max_size=3), leaves=st.integers(0, 3))
    def a_worker_works(self, pick: int, how: list[str], leaves: int) -> None:
        self.works(choose(self.workers, pick), how, leaves)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, how=st.sampled_from(sorted(ENDINGS)))
    def a_worker_works_on_jobs_that_all_end_alike(self, pick: int, how: str) -> None:
        self.works(choose(self.workers, pick), [how] * 4, 0)

    @precondition(lambda self: self.workers)
    @step(pick=PICK)
    def a_worker_only_claims(self, pick: int) -> None:
        self.works(choose(self.workers, pick), [], 9)

    @precondition(lambda self: self.workers or self.dead)
    @step(pick=PICK)
    def extend(self, pick: int) -> None:
        self.extends(choose([*self.workers, *self.dead], pick))

    @precondition(lambda self: self.workers)
    @step(pick=PICK, threads=st.integers(0, 4), coroutines=st.integers(0, 2), knows=st.booleans())
    def exchange(self, pick: int, threads: int, coroutines: int, knows: bool) -> None:
        """A worker writes what has ended and claims jobs without a device, with a fresh or an old decision."""
        worker = choose(self.workers, pick)
        if knows:
            self.decides(worker)
        self.exchanges(worker, threads, coroutines)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, extends=st.booleans())
    def claim_for_devices(self, pick: int, extends: bool) -> None:
        worker = choose(self.workers, pick)
        if extends:
            self.extends(worker)
        self.claims_for_devices(worker)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, other=PICK, device=PICK, reserved=RESERVED)
    def claim_what_was_proposed_wrongly(self, pick: int, other: int, device: int, reserved: int) -> None:
        """A claim whose proposal is old or wrong: everything that must hold is asked again."""
        on_devices = [job["id"] for job in self.model.jobs.values() if job["queue"] in ON_DEVICES]
        if on_devices:
            self.proposes(choose(self.workers, pick), choose(on_devices, other), device, reserved)

    @precondition(lambda self: any(attempt.lease.placement for worker in self.workers for attempt in worker.running))
    @step(
        pick=PICK,
        jobs=st.lists(COMPUTING_JOBS | REQUESTS, min_size=1, max_size=2),
        how=ANY_END,
        reserved=RESERVED,
        prunes=st.booleans(),
    )
    def memory_is_still_coming_back(self, pick: int, jobs: list[Any], how: str, reserved: int, prunes: bool) -> None:
        """An attempt on a device has ended and is not cleaned up, when its job is pruned and a claim asks for the device."""
        placed = [(worker, attempt) for worker in self.workers for attempt in worker.running if attempt.lease.placement]
        worker, attempt = choose(placed, pick)
        device = [item.name for item in self.workshop.settings.devices].index(attempt.lease.placement.device)
        self.ends(worker, attempt, how)
        self.enqueues(jobs, "using", None)
        for job_id in [
            job["id"] for job in self.model.jobs.values() if job["state"] == "available" and job["queue"] in ON_DEVICES
        ]:
            self.proposes(worker, job_id, device, reserved)

    def proposes(self, worker: PlayedWorker, job_id: int, device: int, reserved: int) -> None:
        settings = choose(self.workshop.settings.devices, device)
        job = self.model.jobs[job_id]
        if self.model.size_one(job):  # no worker proposes a job whose demand it does not know
            self.store.jobs.set_demands([(job_id, Demand(job["bytes"], job["model"]))], largest_bytes=self.model.largest)
        lease = self.store.attempts.claim_placed(
            job_of(self.store, job_id),
            Placement(settings.name, reserved),
            worker_id=worker.name,
            queue=self.workshop.settings.queues[self.model.jobs[job_id]["queue"]],
            device=settings,
            rules=self.gate_of(worker),
            preemptible=is_preemptible(self.model.jobs[job_id]["task"]),
            now_us=self.clock.now,
        )
        claimed = self.model.claim_placed(worker.name, job_id, settings.name, reserved)
        self.begins(worker, [] if lease is None else [lease], [job_id] if claimed else [])

    @precondition(lambda self: any(worker.running for worker in self.workers))
    @step(pick=PICK, how=st.sampled_from(sorted(ENDINGS)), writes=st.booleans())
    def end_attempt(self, pick: int, how: str, writes: bool) -> None:
        worker, attempt = choose([(worker, attempt) for worker in self.workers for attempt in worker.running], pick)
        self.ends(worker, attempt, how)
        if writes and attempt.lease.placement is None:
            self.exchanges(worker, 0, 0)

    @precondition(lambda self: self.late)
    @step(pick=PICK, how=ANY_END, together=st.booleans())
    def a_late_attempt_ends(self, pick: int, how: str, together: bool) -> None:
        """An attempt of a dead worker ends, in one transaction with one of a living worker, which must not be hurt."""
        late = choose(self.late, pick)
        outcome, expected = self.judged(late, how)
        batch = [(outcome, expected)]
        for worker in self.workers:
            if together and worker.ended:
                batch.append(worker.ended.pop())
        self.finishes(batch)

    @precondition(lambda self: self.late or any(worker.running for worker in self.workers))
    @step(
        pick=PICK,
        text=st.sampled_from(["", "piece"]),
        line=st.sampled_from(["", "a line"]),
        progress=st.sampled_from([None, (0.25, "quarter"), (1.0, "")]),
    )
    def say(self, pick: int, text: str, line: str, progress: tuple[float, str] | None) -> None:
        attempt = choose([*(attempt for worker in self.workers for attempt in worker.running), *self.late], pick)
        lease = attempt.lease
        if text:
            self.workshop.output.emit(lease, text)
        if line:
            self.workshop.output.log(lease, self.clock.now, line)
        if progress is not None:
            self.workshop.output.progress(lease, *progress)
        self.workshop.output.flush(lease)
        self.model.report(lease.job_id, lease.lease, text=text, line=line, progress=progress)

    @precondition(lambda self: self.old_clean_ups or any(worker.clean_ups for worker in self.workers))
    @step(pick=PICK)
    def clean_up(self, pick: int) -> None:
        """A clean-up is verified, perhaps one whose lease was lost meanwhile."""
        mine = [(worker.clean_ups, item) for worker in self.workers for item in worker.clean_ups]
        clean_ups, item = choose(mine + [(self.old_clean_ups, item) for item in self.old_clean_ups], pick)
        if clean_ups is not self.old_clean_ups:
            clean_ups.remove(item)
            self.old_clean_ups = [*self.old_clean_ups[-5:], item]
        self.releases(item)
