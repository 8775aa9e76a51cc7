"""Defines the hooks that report events after the fact; calls none of them."""

from __future__ import annotations

from gpuqueue.contract.details import hookspec
from gpuqueue.domain.job import Event


class Events:
    """Called after the fact by a worker, from the events table; an exception is logged and has no other effect.

    Each event is delivered once, to one worker, in order; events that a worker had not finished when it died are not repeated.
    Hooks return nothing. `job_id` and `queue` are None if the event concerns none.
    """

    @hookspec
    def job_enqueued(self, details: Event) -> None:
        """A job was stored.

        Called for every job, from any process, once a worker with a plugin that has event hooks has run; not for a job in a
        transaction that was rolled back.

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
        """A worker claimed a job; `data` has attempt, worker, device, and waited_s (since it could first have started).

        Called for every attempt; `device` is None for a queue without a device.

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
        """A running job reported its progress; `data` has progress (0 to 1), note, attempt and lease.

        Called with the latest of a job's reports within a tenth of a second.

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
        """An attempt ended without finishing its job; `data` has the job's new state, ran_s, and whether it was preempted.

        Called when an attempt failed and another will follow, and when a job was snoozed, preempted or given back.

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
        """A job completed, was cancelled or was discarded; `data` has the state, and ran_s (None if it did not run).

        Called once for each job; read its result or error from `gq.job(details.job_id)`.

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

        Called by the worker that took it back, for every job that the dead worker had claimed.

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
        """A queue is now held; `data` has the reasons.

        Called when a queue that was free becomes held; `reasons` are words such as "paused" or "window", and those of plugins.

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

        Called by the next worker that checks, once no reason is left.

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
        """A backend became unavailable; `data` has backend and error.

        Called at the first job or probe that finds it unavailable, not at later ones.

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
        """A backend is available again; `data` has backend.

        Called at the first job or probe that it answers again.

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

        Called at the first reading that reports it, not at later ones.

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

        Called at the first reading that succeeds again.

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
        """A worker started; `data` has worker, host and pid.

        Called for every worker of the database, including those without plugins.

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
        """A worker stopped cleanly; `data` has worker.

        Not called for a worker that was killed; `lease_rescued` reports the jobs that it had.

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
