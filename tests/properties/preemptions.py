"""Owns the rules by which attempts on devices make room for jobs that come first; decides nothing of who does."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from tests.properties.model_jobs import SECOND
from tests.properties.offers import COMPUTING_JOBS, REQUESTS
from tests.properties.play import PICK, Play, choose, step
from tests.properties.scene import PlayedWorker

STOPS = [*["makes room"] * 4, "returns", "fails", "snoozes"]  # or it ends otherwise before it notices
LONG_WORK = ("compute", {"gb": 3, "model": "m"}, "batch", {"priority": 9})  # before all else that yields


class Preemptions(Play):
    """What happens when a job that comes first finds its device taken."""

    def asked(self) -> list[PlayedWorker]:
        """The workers that run what they are to stop."""
        return [worker for worker in self.workers if self.model.stop_requests(worker.name)]

    @precondition(lambda self: self.asked())
    @step(pick=PICK, how=st.sampled_from(STOPS))
    def asked_attempts_stop(self, pick: int, how: str) -> None:
        self.stops_what_is_asked(choose(self.asked(), pick), how)

    def serving_all(self) -> list[PlayedWorker]:
        return [worker for worker in self.workers if self.model.workers[worker.name]["queues"] is None]

    def devices_get_free(self, by: PlayedWorker) -> None:
        """All that computes ends, and what it held is given back."""
        for dead in list(self.dead):
            self.rescues(dead, by, "none")
        self.collects_abandoned(by)
        for name in self.workshop.cards:
            self.device_is(name, is_lost=False)
        for worker in self.workers:
            for attempt in [attempt for attempt in worker.running if attempt.lease.placement]:
                self.ends(worker, attempt, "returns")
            for item in worker.clean_ups:
                self.releases(item)
            worker.clean_ups.clear()

    @precondition(lambda self: self.workers)
    @step(
        pick=PICK,
        background=st.lists(
            st.tuples(COMPUTING_JOBS, st.sampled_from(["batch", "batch", "batch", "train", "train", "steady"])),
            min_size=1,
            max_size=4,
        ),
        first=st.lists(COMPUTING_JOBS | REQUESTS, min_size=1, max_size=2),
        times=st.sampled_from([2, 2, 1]),
        seconds=st.sampled_from([3, 3, 3, 1, 0]),
        how=st.sampled_from([*STOPS, "nobody looks", "dies"]),
        executed=st.sampled_from(["all", "none"]),
    )
    def persons_come_while_others_compute(
        self, pick: int, background: list[Any], first: list[Any], times: int, seconds: int, how: str, executed: str
    ) -> None:
        """Work of queues that yield gets the devices while `ai` is paused; then a job of `ai` comes, and perhaps another."""
        if not self.serving_all():
            self.starts_worker(None)
        worker = choose(self.serving_all(), pick)
        self.backend_answers(worked=True)
        self.devices_get_free(worker)
        self.enqueues([LONG_WORK], "using", None)
        self.enqueues([(task, arguments, queue, {}) for (task, arguments, _, _), queue in background], "using", None)
        for _ in range(times):
            self.gq.pause("ai", by="me")
            self.model.pause("ai", None)
            self.devices_get_free(worker)
            self.works(worker, [], 0)
            self.tick(seconds * SECOND)
            assert self.gq.resume("ai", by="me") is self.model.resume("ai")
            self.enqueues([(task, arguments, "ai", {}) for task, arguments, _, _ in first], "using", None)
            self.claims_for_devices(worker)
            if how not in ("nobody looks", "dies"):
                for other in self.asked():
                    self.stops_what_is_asked(other, how)
        if how == "dies":
            self.workers.remove(worker)
            self.starts_worker(None)
            self.rescues(worker, self.workers[-1], executed)
