"""Owns what holds the model's queues, its backends, and what its workers decide of that; claims nothing."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from gpuqueue.domain.units import from_us, to_us
from tests.properties.model_jobs import LEASE_S, SAFE_PART, SECOND, STALE_S, Job, ModelJobs


class ModelHolds(ModelJobs):
    """Why queues may not start jobs, and who knows of it."""

    def pause(self, queue: str, until: int | None) -> None:
        self.pauses[queue] = until
        self.events.append(("queue_paused", None, queue, {}))

    def resume(self, queue: str) -> bool:
        was_paused = self.is_paused(queue)
        self.pauses.pop(queue, None)
        if was_paused:
            self.events.append(("queue_resumed", None, queue, {}))
        return was_paused

    def is_paused(self, queue: str) -> bool:
        until = self.pauses.get(queue, 0)
        return until is None or until > self.now

    def holds(self) -> dict[str, dict[str, int | None]]:
        """Why each queue may not start jobs: {queue: {reason: until}}."""
        return {queue: self.holds_of(queue) for queue in self.queues}

    def holds_of(self, queue: str) -> dict[str, int | None]:
        settings = self.queues[queue]
        found: dict[str, int | None] = {}
        if self.is_paused(queue):
            found["paused"] = self.pauses[queue]
        if settings.pause:
            until = self.window_until()
            if until is not None:
                found["window"] = until
        if self._is_away(settings.backend):
            found["unavailable"] = None  # nobody knows when it is back
        if settings.gpu and self.seen_lost == set(self.devices):
            found["device_lost"] = None
        if any(self._has_work(other) for other in settings.yields_to):
            found["yielding"] = None
        return found

    def _is_away(self, name: str) -> bool:
        """Whether a backend is taken to be away: no longer once it was to be asked again, and nobody has for long."""
        backend = self.backends.get(name)
        return backend is not None and not backend["available"] and self.now <= backend["retry_at"] + STALE_S * SECOND

    def _has_work(self, queue: str) -> bool:
        """Work is what runs, and what only waits for the device."""
        if self._jobs("running", queue=queue):
            return True
        return self._waits_for_room(queue) and self.is_served(queue) and not self.holds_of(queue)

    def _startable(self, queue: str) -> list[Job]:
        """Those that some device could take."""
        return [job for job in self._jobs("available", queue=queue) if not (job["sized"] and job["bytes"] > self.largest)]

    def _waits_for_room(self, queue: str) -> bool:
        """Whether a job waits only for its turn; a suspect without a device waits for a worker that knows its task."""
        return any(self.queues[queue].gpu or not job["suspect"] for job in self._startable(queue))

    def window_until(self) -> int | None:
        """The one window there is: from nine to six, UTC."""
        now = from_us(self.now)
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        is_open = day + timedelta(hours=9) <= now < day + timedelta(hours=18)
        return to_us(day + timedelta(hours=18)) if is_open else None

    def is_served(self, queue: str) -> bool:
        return any(self.is_alive(worker) and self._serves(worker, queue) for worker in self.workers)

    def is_alive(self, worker: str) -> bool:
        return worker in self.workers and self.workers[worker]["expires"] > self.now

    def backend_lost(self, name: str) -> None:
        backend = self.backends[name]
        if backend["available"]:
            backend["failures"] += 1
            backend["available"] = False
            self.events.append(("backend_lost", None, None, {"backend": name}))
        retries = [queue.retry_every_s for queue in self.queues.values() if queue.backend == name]
        wait_s = min(backend["settings"].probe_every_s * 2 ** (backend["failures"] - 1), *retries)
        backend["retry_at"] = self.now + int(wait_s * SECOND)

    def backend_answered(self, name: str, *, worked: bool) -> bool:
        backend = self.backends[name]
        was_away = not backend["available"]
        backend.update(available=True, retry_at=None)
        if worked:
            backend["failures"] = 0
        if was_away:
            backend["back_at"] = self.now
            self.events.append(("backend_recovered", None, None, {"backend": name}))
            for job in self._jobs("retryable"):
                if job["waiting_for"] == name:
                    job["due"] = job["enqueued"]
                    self._move(job, "available")
        return was_away

    def read_device(self, name: str) -> None:
        """A worker tells whether a device can be read."""
        is_lost = name in self.lost
        if is_lost is not (name in self.seen_lost):
            self.events.append(("device_lost" if is_lost else "device_recovered", None, None, {"device": name}))
        self.seen_lost = self.seen_lost - {name} | ({name} if is_lost else set())

    def register(self, worker: str, queues: tuple[str, ...] | None) -> None:
        self.workers[worker] = {"queues": queues, "expires": self.now + LEASE_S * SECOND, "extended": self.now, "told": None}
        self.events.append(("worker_started", None, None, {"worker": worker}))

    def extend(self, worker: str) -> bool:
        if worker not in self.workers:
            return False
        self.workers[worker].update(expires=self.now + LEASE_S * SECOND, extended=self.now)
        return True

    def unregister(self, worker: str) -> None:
        if self.workers.pop(worker, None) is not None:
            self.events.append(("worker_stopped", None, None, {"worker": worker}))

    def may_claim(self, worker: str) -> bool:
        found = self.workers.get(worker)
        return found is not None and self.now - found["extended"] < LEASE_S * SECOND * SAFE_PART

    def decide(self, worker: str) -> None:
        """A worker looks at everything: it notes what is held, and ends the jobs of queues that refuse them."""
        found = self.workers[worker]
        holds = self.holds()
        reasons = {queue: sorted(reasons) for queue, reasons in holds.items()}
        if found["told"] != reasons:
            for queue, now in reasons.items():
                if self.noted.get(queue, []) != now:
                    self.events.append(("queue_held" if now else "queue_released", None, queue, {"reasons": now}))
                self.noted[queue] = now
            found["told"] = reasons
        found["held"] = {queue for queue, reasons in holds.items() if set(reasons) - {"yielding"}}
        mine = [queue for queue in self.queues if queue not in found["held"] and self._serves(worker, queue)]
        found["plain"] = [queue for queue in mine if not self.queues[queue].gpu]
        found["gpu"] = [queue for queue in mine if self.queues[queue].gpu]
        for queue in holds:
            if self._refuses(queue):
                self.refuse(queue)

    def _refuses(self, queue: str) -> bool:
        return self.queues[queue].when_unavailable == "reject" and bool(
            {"unavailable", "device_lost"} & set(self.holds_of(queue))
        )

    def refuse_at_once(self, job_id: int) -> None:
        """A job that was stored by itself is not kept for a worker that would only refuse it."""
        job = self.jobs[job_id]
        is_away = any(not backend["available"] for backend in self.backends.values())
        if is_away and job["state"] == "available" and self._refuses(job["queue"]):
            self._finish(job, "discarded", "unavailable")

    def _serves(self, worker: str, queue: str) -> bool:
        queues = self.workers[worker]["queues"]
        return queues is None or queue in queues

    def admits(self, queue: str, held: Collection[str]) -> bool:
        """Whether a claim may take a job of the queue: `held` is what the worker knew, all else is as it is now."""
        if queue in held or self.is_paused(queue):
            return False
        for other in self.queues[queue].yields_to:
            if self._jobs("running", queue=other):
                return False
            if self.admits(other, held) and self._waits_for_room(other) and self.is_served(other):
                return False
        return True
