"""Owns the rules by which something goes wrong or changes: death, rescue, stopping, an absent backend, other settings."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition

from tests.properties.model_jobs import MAX_CRASHES
from tests.properties.play import ANY_END, PICK, Play, choose, step

EXECUTED = ["all", "none", "every second", "not known"]  # of a dead worker's jobs, by what its death left to read


class Troubles(Play):
    """What happens to workers and backends."""

    @precondition(lambda self: self.workers)
    @step(pick=PICK)
    def a_worker_dies(self, pick: int) -> None:
        worker = choose(self.workers, pick)
        self.workers.remove(worker)
        self.dead.append(worker)

    @precondition(lambda self: any(worker.running or worker.clean_ups for worker in self.workers))
    @step(
        pick=PICK,
        executed=st.sampled_from(EXECUTED),
        works=st.booleans(),
        how=ANY_END | st.none(),
    )
    def a_busy_worker_dies_and_is_rescued(self, pick: int, executed: str, works: bool, how: str | None) -> None:
        """Its jobs may be at work elsewhere already when it ends them after all."""
        dead = choose([worker for worker in self.workers if worker.running or worker.clean_ups], pick)
        self.workers.remove(dead)
        self.starts_worker(None)
        self.rescues(dead, self.workers[-1], executed)
        if works:
            self.works(self.workers[-1], [], pick % 3)
        if how is not None:
            self.finishes([*dead.ended, *(self.judged(attempt, how) for attempt in dead.running)])
            for item in dead.clean_ups:
                self.releases(item)

    @precondition(lambda self: self.workers)
    @step(times=st.integers(2, MAX_CRASHES + 1), executed=st.sampled_from(EXECUTED))
    def jobs_kill_one_worker_after_another(self, times: int, executed: str) -> None:
        for _ in range(times):
            self.starts_worker(None)
            dead = self.workers.pop()
            self.works(dead, [], 0)
            self.rescues(dead, self.workers[0], executed)

    @precondition(lambda self: self.workers and self.dead)
    @step(pick=PICK, by=PICK, executed=st.sampled_from(EXECUTED))
    def rescue(self, pick: int, by: int, executed: str) -> None:
        self.rescues(choose(self.dead, pick), choose(self.workers, by), executed)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, how=st.sampled_from(["is given back", "returns"]), cleans=st.booleans())
    def a_worker_stops(self, pick: int, how: str, cleans: bool) -> None:
        """In good order: its jobs end or go back; a clean-up that is not verified is left to others."""
        worker = choose(self.workers, pick)
        for attempt in list(worker.running):
            self.ends(worker, attempt, how)
        self.finishes(worker.ended)
        for item in worker.clean_ups if cleans else []:
            self.releases(item)
        self.old_clean_ups += [] if cleans else worker.clean_ups
        self.store.workers.unregister(worker.name, now_us=self.clock.now)
        self.model.unregister(worker.name)
        self.workers.remove(worker)

    @precondition(lambda self: self.workers and self.model.abandoned_by())
    @step(pick=PICK)
    def what_was_abandoned_is_collected(self, pick: int) -> None:
        self.collects_abandoned(choose(self.workers, pick))

    @step(how=st.sampled_from(["away", "back", "works"]))
    def the_backend_is(self, how: str) -> None:
        if how == "away":
            self.backend_lost()
        else:
            self.backend_answers(worked=how == "works")

    @step(pick=PICK, is_lost=st.booleans(), is_seen=st.booleans())
    def a_device_is_lost_or_back(self, pick: int, is_lost: bool, is_seen: bool) -> None:
        name = choose(sorted(self.workshop.cards), pick)
        self.device_is(name, is_lost=is_lost)
        if is_seen:
            self.reads_devices()

    @step()
    def accept_another_configuration(self) -> None:
        self.accept()
        self.model.forget_demands()
