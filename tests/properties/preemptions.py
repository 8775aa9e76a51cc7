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


class Preemptions(Play):
    """What happens when a job that comes first finds its device taken."""

    def asked(self) -> list[PlayedWorker]:
        """The workers that run what they are to stop."""
        return [worker for worker in self.workers if self.model.stop_requests(worker.name)]

    @precondition(lambda self: self.asked())
    @step(pick=PICK, how=st.sampled_from(STOPS))
    def asked_attempts_stop(self, pick: int, how: str) -> None:
        self.stops_what_is_asked(choose(self.asked(), pick), how)

    @precondition(lambda self: self.workers)
    @step(
        pick=PICK,
        background=st.lists(st.tuples(COMPUTING_JOBS, st.sampled_from(["batch", "train", "steady"])), min_size=1, max_size=4),
        first=st.lists(COMPUTING_JOBS | REQUESTS, min_size=1, max_size=2),
        times=st.sampled_from([1, 1, 2]),
        seconds=st.sampled_from([0, 1, 3, 3]),
        how=st.sampled_from(["nobody looks", *STOPS, "dies"]),
        executed=st.sampled_from(["all", "none"]),
    )
    def persons_come_while_others_compute(
        self, pick: int, background: list[Any], first: list[Any], times: int, seconds: int, how: str, executed: str
    ) -> None:
        """Work of queues that yield gets the devices while `ai` is paused; then a job of `ai` comes, and perhaps another."""
        worker = choose(self.workers, pick)
        self.enqueues([(task, arguments, queue, {}) for (task, arguments, _, _), queue in background], "using", None)
        for _ in range(times):
            self.gq.pause("ai", by="me")
            self.model.pause("ai", None)
            self.works(worker, ["returns"] * len(worker.running), 0)
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
