"""Owns the hooks that are told after the fact; calls none of them."""

from __future__ import annotations

from gpuqueue.contract.details import hookspec
from gpuqueue.domain.job import Event


class Events:
    """Told after the fact, by a worker, from the events table; an exception is logged and hurts nobody.

    Each event is delivered once, to one worker, in order; what that worker had not finished when it died is not repeated.
    Nothing is returned. `job_id` and `queue` are None where the event concerns none.
    """

    @hookspec
    def job_enqueued(self, details: Event) -> None:
        """A job was stored.

        Told of every job, whoever stored it, once a worker has run whose plugins are told of events; of a job whose transaction
        was rolled back there is none.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def job_enqueued(self, details):
                    self.seen.append((details.job_id, details.queue))

            gq = queue_with(Diary())
            job = gq.enqueue("send")
            run(gq)
            assert Diary.seen == [(job.id, "mail")]
        """

    @hookspec
    def attempt_started(self, details: Event) -> None:
        """A worker claimed a job; `data` has attempt, worker, device, and waited_s since it could first have begun.

        Told for every attempt; `device` is None for a queue without one.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def attempt_started(self, details):
                    self.seen.append((details.data["attempt"], details.data["device"]))

            gq = queue_with(Diary())
            gq.enqueue("learn")
            run(gq)
            assert Diary.seen == [(1, "gpu0")]
        """

    @hookspec
    def job_progressed(self, details: Event) -> None:
        """A running job said how far it is; `data` has progress (0 to 1), note, attempt and lease.

        Of what a job says within a tenth of a second, the latest is told.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def job_progressed(self, details):
                    self.seen.append((details.data["progress"], details.data["note"]))

            gq = queue_with(Diary())
            gq.enqueue("report")
            run(gq)
            assert Diary.seen == [(0.5, "half")]
        """

    @hookspec
    def attempt_finished(self, details: Event) -> None:
        """An attempt ended without finishing its job; `data` has the state it went to, ran_s, and whether it was preempted.

        Told when an attempt failed and another will follow, and when a job snoozed, made room or was given back.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def attempt_finished(self, details):
                    self.seen.append((details.job_id, details.data["state"]))

            gq = queue_with(Diary())
            job = gq.enqueue("fail", max_attempts=2)
            run(gq)
            assert Diary.seen == [(job.id, "retryable")]
        """

    @hookspec
    def job_finished(self, details: Event) -> None:
        """A job completed, was cancelled or was discarded; `data` has the state, and ran_s (None when it did not run).

        Told once for each job; its result or error is `gq.job(details.job_id)`'s.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def job_finished(self, details):
                    self.seen.append((details.job_id, details.data["state"]))

            gq = queue_with(Diary())
            job = gq.enqueue("fail")
            run(gq)
            assert Diary.seen == [(job.id, "discarded")]
        """

    @hookspec
    def lease_rescued(self, details: Event) -> None:
        """A dead worker's job was taken back; `data` has worker, proof and crashes.

        Told by the worker that took it back, for every job that the dead one had claimed.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def lease_rescued(self, details):
                    self.seen.append((details.job_id, details.data["worker"]))

            gq = queue_with(Diary())
            job = gq.enqueue("send")
            claim_and_die(gq, job, worker="w1")
            with Worker(gq):
                until(lambda: Diary.seen == [(job.id, "w1")])
        """

    @hookspec
    def queue_held(self, details: Event) -> None:
        """A queue began to be held; `data` has the reasons.

        Told when a queue that was free is held; `reasons` are words such as "paused" or "window", and those of plugins.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def queue_held(self, details):
                    self.seen.append((details.queue, details.data["reasons"]))

            gq = queue_with(Diary())
            gq.pause("mail")
            run(gq)
            assert Diary.seen == [("mail", ["paused"])]
        """

    @hookspec
    def queue_released(self, details: Event) -> None:
        """A queue may start jobs again.

        Told when the last reason has gone, by the next worker that looks.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def queue_released(self, details):
                    self.seen.append(details.queue)

            gq = queue_with(Diary())
            gq.pause("mail")
            run(gq)
            gq.resume("mail")
            run(gq)
            assert Diary.seen == ["mail"]
        """

    @hookspec
    def backend_lost(self, details: Event) -> None:
        """A backend went away; `data` has backend and error.

        Told at the first job or probe that finds it away, not at those that follow.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def backend_lost(self, details):
                    self.seen.append(details.data["backend"])

            gq = queue_with(Diary())
            ollama.go_away()
            with Worker(gq):
                until(lambda: Diary.seen == ["ollama"])
        """

    @hookspec
    def backend_recovered(self, details: Event) -> None:
        """A backend came back; `data` has backend.

        Told at the first job or probe that it answers again.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def backend_recovered(self, details):
                    self.seen.append(details.data["backend"])

            gq = queue_with(Diary())
            ollama.go_away()
            with Worker(gq):
                until(lambda: not gq.view().backends["ollama"].available)
                ollama.come_back()
                until(lambda: Diary.seen == ["ollama"])
        """

    @hookspec
    def device_lost(self, details: Event) -> None:
        """A device can no longer be read; `data` has device and error.

        Told at the first reading that says so, not at those that follow.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def device_lost(self, details):
                    self.seen.append(details.data["device"])

            gq = queue_with(Diary())
            card.lost = True
            run(gq)
            assert Diary.seen == ["gpu0"]
        """

    @hookspec
    def device_recovered(self, details: Event) -> None:
        """A lost device can be read again; `data` has device.

        Told at the first reading that does not say it is lost.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def device_recovered(self, details):
                    self.seen.append(details.data["device"])

            gq = queue_with(Diary())
            card.lost = True
            run(gq)
            card.lost = False
            run(gq)
            assert Diary.seen == ["gpu0"]
        """

    @hookspec
    def worker_started(self, details: Event) -> None:
        """A worker began; `data` has worker, host and pid.

        Told of every worker of the file, also of those that have no plugins.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def worker_started(self, details):
                    self.seen.append(details.data["worker"])

            gq = queue_with(Diary())
            with Worker(gq) as worker:
                until(lambda: worker.id in Diary.seen)
        """

    @hookspec
    def worker_stopped(self, details: Event) -> None:
        """A worker ended in good order; `data` has worker.

        Told of one that was killed in no way but by `lease_rescued` of the jobs that it had.

        Example:
            class Diary:
                seen = []

                @hookimpl
                def worker_stopped(self, details):
                    self.seen.append(details.data["worker"])

            gq = queue_with(Diary())
            with Worker(gq) as worker:
                pass
            assert worker.id in Diary.seen
        """
