"""Owns the model: what the queue promises, told with plain dictionaries of jobs; knows nothing of rows, SQL or the store.

Written from the documented semantics. Times are integers in microseconds; `now` is moved by whoever drives the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from gpuqueue.domain import BackendSettings, DeviceSettings, QueueSettings
from gpuqueue.units import from_us, to_us

Job = dict[str, Any]
Ended = dict[str, Any]  # how an attempt ends: kind, state, code, due, spent, outcome, waiting_for, result

WAITING = ("scheduled", "available", "retryable")
FINISHED = ("completed", "cancelled", "discarded")
SECOND = 1_000_000
CLASS_BYTES = 64 * 2**20
MAX_CRASHES = 3
LEASE_S = 30
SAFE_PART = 0.8  # of the lease; a worker that could not extend it by then claims nothing


class Model:
    """All jobs of one queue file. `demand_of` says what a job needs of a device, as (bytes, model)."""

    def __init__(
        self,
        now: int,
        queues: Mapping[str, QueueSettings],
        devices: Sequence[DeviceSettings],
        backends: Sequence[BackendSettings],
        *,
        demand_of: Callable[[Job], tuple[int, str]],
        kind_of: Callable[[str], str],
    ) -> None:
        self.now = now
        self.queues = queues
        self.devices = {device.name: device for device in devices}
        self.largest = max((device.budget_bytes for device in devices), default=0)
        self.demand_of = demand_of
        self.kind_of = kind_of
        self.jobs: dict[int, Job] = {}
        self.newest = 0
        self.pauses: dict[str, int | None] = {}
        self.workers: dict[str, Job] = {}  # those that have a row
        self.backends: dict[str, Job] = {
            item.name: {"available": True, "failures": 0, "retry_at": None, "back_at": None, "settings": item} for item in backends
        }
        self.noted: dict[str, list[str]] = {}  # the reasons of holds that were last told of
        self.events: list[tuple[Any, ...]] = []
        self.finishes: Counter[int] = Counter()
        self.retries: Counter[int] = Counter()

    # --- a job's life outside an attempt ---

    def enqueue(self, job_id: int, **given: Any) -> None:
        assert job_id > self.newest, f"id {job_id} was given before"
        self.newest = job_id
        self.jobs[job_id] = job = {
            "id": job_id, "attempt": 0, "lease": 0, "crashes": 0, "enqueued": self.now, "started": None, "finished": None,
            "worker": None, "model": "", "bytes": 0, "sized": False, "device": None, "reserved": 0, "waiting_for": None,
            "cancel": False, "code": None, "progress": None, "note": "", "lines": [], "output": [], "outcomes": [], "result": None,
            "state": "available" if given["due"] <= self.now else "scheduled", **given,
        }  # fmt: skip
        self.events.append(("job_enqueued", job_id, job["queue"], {"state": job["state"]}))

    def cancel(self, job_id: int) -> str:
        job = self.jobs[job_id]
        before: str = job["state"]
        if before == "running":
            job["cancel"] = True
        elif before in WAITING:
            self._finish(job, "cancelled", job["code"])
        return before

    def may_retry(self, job_id: int) -> bool:
        return self.jobs[job_id]["state"] in ("discarded", "cancelled", "retryable", "scheduled")

    def retry(self, job_id: int) -> None:
        job = self.jobs[job_id]
        job.update(due=self.now, attempt=0, crashes=0, expires=None, cancel=False, code=None, finished=None)
        self._unsize(job)
        self._move(job, "available")
        self.retries[job_id] += 1

    def move_due(self) -> None:
        for job in self._jobs("scheduled", "retryable"):
            if job["due"] <= self.now:
                self._move(job, "available")
        for job in self._jobs(*WAITING):
            if job["expires"] is not None and job["expires"] <= self.now:
                self._finish(job, "discarded", "expired")

    def next_due(self) -> int | None:
        times = [job["due"] for job in self._jobs("scheduled", "retryable")]
        times += [job["expires"] for job in self._jobs(*WAITING) if job["expires"] is not None]
        return min(times, default=None)

    def refuse(self, queue: str) -> None:
        for job in self._jobs("available", queue=queue):
            self._finish(job, "discarded", "unavailable")

    def refuse_one(self, job_id: int) -> bool:
        job = self.jobs[job_id]
        if job["state"] not in WAITING:
            return False
        self._finish(job, "discarded", "unavailable")
        return True

    def prunable(self, state: str, before: int) -> list[Job]:
        """The jobs that may be pruned, those that finished first coming first."""
        found = [job for job in self._jobs(state) if job["finished"] < before and job["device"] is None and job["id"] < self.newest]
        return sorted(found, key=lambda job: job["finished"])

    def forget_demands(self) -> None:
        for job in self._jobs(*WAITING, "running"):
            if job["sized"]:
                self._unsize(job)

    # --- holds ---

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
            until = self._window_until()
            if until is not None:
                found["window"] = until
        backend = self.backends.get(settings.backend)
        if backend is not None and not backend["available"]:
            found["unavailable"] = backend["retry_at"]
        if any(self._has_work(other) for other in settings.yields_to):
            found["yielding"] = None
        return found

    def _has_work(self, queue: str) -> bool:
        """Work is what runs, and what only waits for the device."""
        if self._jobs("running", queue=queue):
            return True
        return bool(self._startable(queue)) and self.is_served(queue) and not self.holds_of(queue)

    def _startable(self, queue: str) -> list[Job]:
        return [job for job in self._jobs("available", queue=queue) if not (job["sized"] and job["bytes"] > self.largest)]

    def _window_until(self) -> int | None:
        """The one window there is: from nine to six, UTC."""
        now = from_us(self.now)
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        is_open = day + timedelta(hours=9) <= now < day + timedelta(hours=18)
        return to_us(day + timedelta(hours=18)) if is_open else None

    def is_served(self, queue: str) -> bool:
        return any(
            worker["expires"] > self.now and (worker["queues"] is None or queue in worker["queues"])
            for worker in self.workers.values()
        )

    # --- backends ---

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

    # --- workers and what they decide ---

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
        for queue, reasons_of in holds.items():
            if "unavailable" in reasons_of and self.queues[queue].when_unavailable == "reject":
                self.refuse(queue)

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
            if self.admits(other, held) and self._startable(other) and self.is_served(other):
                return False
        return True

    # --- claims ---

    def claim(self, worker: str, room: Mapping[str, int]) -> list[int]:
        """Claim jobs without a device; returns their ids in the order of the claim."""
        found = self.workers.get(worker, {})
        if not found.get("plain") or not self.may_claim(worker) or not any(room.values()):
            return []
        self.move_due()
        left = {}
        for queue in found["plain"]:
            if self.admits(queue, found["held"]):
                left[queue] = self._room_in(queue)
        free, stuck, taken = dict(room), set(), []
        for job in sorted((job for queue in left for job in self._jobs("available", queue=queue)), key=rank):
            queue, kind = job["queue"], self.kind_of(job["task"])
            if queue in stuck or left[queue] <= 0 or not any(free.values()):
                continue
            if free.get(kind, 0) <= 0:
                stuck.add(queue)
                continue
            free[kind] -= 1
            left[queue] -= 1
            taken.append(job)
        for job in taken:
            self._start(job, worker)
        return [job["id"] for job in taken]

    def _room_in(self, queue: str) -> int:
        limit = self.queues[queue].concurrency
        return 10**6 if limit is None else limit - len(self._jobs("running", queue=queue))

    def claim_for_devices(self, worker: str) -> list[int]:
        """Claim the jobs that get a device now: of each class of demand the first, in the order of all queues together."""
        due = self.next_due()
        if due is not None and due <= self.now:
            self.move_due()
        if not self.may_claim(worker) or not any(queue.gpu and self._serves(worker, name) for name, queue in self.queues.items()):
            return []
        self.decide(worker)
        for name, queue in self.queues.items():
            if queue.gpu and self._serves(worker, name):
                self._size(name)
        room = max(device.budget_bytes - self._reserved(name) for name, device in self.devices.items())
        heads: dict[tuple[Any, ...], Job] = {}
        for queue_name in self.workers[worker]["gpu"]:
            for job in sorted(self._jobs("available", queue=queue_name), key=rank):
                if job["sized"] and job["bytes"] <= self.largest and job["device"] is None:
                    heads.setdefault((queue_name, job["model"], job["bytes"] // CLASS_BYTES), job)
        taken = []
        for job in sorted((job for job in heads.values() if job["bytes"] <= room), key=rank):
            device, _reason = self.place(job, job["bytes"], job["model"])
            if device is not None and self.claim_placed(worker, job["id"], device, job["bytes"]):
                taken.append(job["id"])
                self.decide(worker)
        return taken

    def claim_placed(self, worker: str, job_id: int, device: str, reserved: int) -> bool:
        """Claim one job for a device, whoever proposed it; everything that must hold is asked again."""
        self.move_due()
        job = self.jobs[job_id]
        if job["state"] != "available" or job["device"] is not None:
            return False
        if not self.admits(job["queue"], self.workers[worker].get("held", ())) or self._room_in(job["queue"]) <= 0:
            return False
        settings, there = self.devices[device], self.on(device)
        models = {other["model"] for other in [*there, job]} - {""}
        if len(there) >= settings.slots or len(models) > settings.max_models:
            return False
        if self._reserved(device) + reserved > settings.budget_bytes:
            return False
        self._start(job, worker, device, reserved)
        return True

    def place(self, job: Job, size: int, model: str) -> tuple[str | None, str]:
        """Where a job gets its memory, or why nowhere."""
        waits = []
        for name, settings in self.devices.items():
            there = self.on(name)
            models = {other["model"] for other in there} - {"", model}
            if size > settings.budget_bytes:
                waits.append("never_fits")
            elif len(there) >= settings.slots:
                waits.append("device_busy" if any(other["state"] == "running" for other in there) else "clean_up")
            elif model and len(models) + 1 > settings.max_models:
                waits.append("max_models")
            elif size > settings.budget_bytes - self._reserved(name):
                waits.append("vram")
            else:
                return name, ""
        return None, next((wait for wait in waits if wait != "never_fits"), "never_fits")

    def on(self, device: str) -> list[Job]:
        return [job for job in self.jobs.values() if job["device"] == device]

    def _reserved(self, device: str) -> int:
        return sum(job["reserved"] for job in self.on(device))

    def _size(self, queue: str) -> None:
        for job in self._jobs("available", queue=queue):
            if not job["sized"] and job["model"] == "":
                job["bytes"], job["model"] = self.demand_of(job)
                job["sized"] = True

    def _start(self, job: Job, worker: str, device: str | None = None, reserved: int = 0) -> None:
        job.update(lease=job["lease"] + 1, attempt=job["attempt"] + 1, worker=worker, started=self.now)
        job.update(device=device, reserved=reserved, progress=None, note="")
        self._move(job, "running")

    # --- the end of attempts ---

    def holds_lease(self, job_id: int, lease: int) -> bool:
        job = self.jobs.get(job_id)
        return job is not None and job["lease"] == lease and job["state"] == "running"

    def finish(self, job_id: int, lease: int, ended: Ended) -> bool:
        """Write how an attempt ended; returns False, and changes nothing, when the lease was lost."""
        if not self.holds_lease(job_id, lease):
            return False
        job = self.jobs[job_id]
        if ended["kind"] == "completed":
            job["result"] = ended["result"]
            self._finish(job, "completed", None)
        elif ended["kind"] == "ended" or job["cancel"]:
            state, code = (ended["state"], ended["code"]) if ended["kind"] == "ended" else ("cancelled", "cancelled")
            job["outcomes"].append(state)
            self._finish(job, state, code)
        else:
            job["outcomes"].append(ended["outcome"])
            job["attempt"] -= 0 if ended["spent"] else 1
            job["code"] = ended["code"] or job["code"]
            job["waiting_for"] = ended["waiting_for"]
            if ended["outcome"] != "released":
                job["due"] = ended["due"]
            backend = self.backends.get(ended["waiting_for"] or "")
            if backend is not None and backend["back_at"] is not None and backend["back_at"] >= job["started"]:
                job["due"] = job["enqueued"]  # what it would wait for has come back while it ran
                self._move(job, "available")
            else:
                self._move(job, "available" if ended["due"] <= self.now else "retryable")
        return True

    def release(self, job_id: int, lease: int) -> bool:
        """Free the device after the clean-up; returns False when the lease was lost or the job still runs."""
        job = self.jobs.get(job_id)
        if job is None or job["lease"] != lease or job["device"] is None or job["state"] == "running":
            return False
        self.events.append(("device_released", job_id, job["queue"], {"device": job["device"], "reserved_bytes": job["reserved"]}))
        job.update(device=None, reserved=0)
        if not job["sized"]:
            job["model"] = ""
        return True

    def rescue(self, dead: str, by: str, executing: Collection[int] | None) -> list[Job]:
        """Take back what a dead worker held; returns the jobs whose device the rescuer must clean up."""
        self.workers.pop(dead, None)
        for job in self._jobs("running"):
            if job["worker"] != dead:
                continue
            crashed = executing is None or job["id"] in executing
            job["outcomes"].append("crashed" if crashed else "released")
            job["crashes"] += int(crashed)
            job["attempt"] -= 1
            job["lease"] += 1
            code = "crashed" if crashed else job["code"]
            if job["cancel"]:
                self._finish(job, "cancelled", code)
            elif job["crashes"] >= MAX_CRASHES:
                self._finish(job, "discarded", "crashed")
            else:
                job["code"] = code
                self._move(job, "available")
            self.events.append(("lease_rescued", job["id"], job["queue"], {"worker": dead, "crashes": job["crashes"]}))
        orphans = [job for job in self.jobs.values() if job["device"] is not None and job["worker"] == dead]
        for job in orphans:
            job["worker"] = by
        return orphans

    def abandoned_by(self) -> set[str]:
        """Workers without a row that still hold something."""
        holding = {job["worker"] for job in self.jobs.values() if job["state"] == "running" or job["device"] is not None}
        return holding - set(self.workers)

    def report(self, job_id: int, lease: int, *, text: str, line: str, progress: tuple[float, str] | None) -> None:
        if not self.holds_lease(job_id, lease):
            return
        job = self.jobs[job_id]
        if text:
            job["output"].append((lease, text))
        if line:
            job["lines"].append((lease, line))
        if progress is not None:
            job["progress"], job["note"] = progress
            data = {"progress": progress[0], "note": progress[1], "attempt": job["attempt"], "lease": lease}
            self.events.append(("job_progressed", job_id, job["queue"], data))

    # --- why a job waits ---

    def reasons(self, job_id: int) -> set[str]:
        """Every reason why an unfinished job does not start now."""
        job = self.jobs[job_id]
        queue = job["queue"]
        found = set(self.holds_of(queue))
        found |= {job["state"]} & {"scheduled", "retryable"}
        if not self.is_served(queue):
            found.add("no_worker")
        if self._room_in(queue) <= 0:
            found.add("concurrency")
        if job["device"] is not None:
            found.add("clean_up")
        elif self.queues[queue].gpu and job["state"] == "available":
            size, model = (job["bytes"], job["model"]) if job["sized"] else self.demand_of(job)
            device, reason = self.place(job, size, model)
            found |= set() if device else {reason}
        if job["state"] == "available" and any(rank(other) < rank(job) for other in self._startable(queue)):
            found.add("behind")
        return found

    # --- small things ---

    def counts(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {queue: {} for queue in self.queues}
        for (queue, state), count in Counter((job["queue"], job["state"]) for job in self.jobs.values()).items():
            found[queue][state] = count
        return found

    def _jobs(self, *states: str, queue: str | None = None) -> list[Job]:
        return [job for job in self.jobs.values() if job["state"] in states and queue in (None, job["queue"])]

    def _unsize(self, job: Job) -> None:
        job.update(sized=False, bytes=0)
        if job["device"] is None:
            job["model"] = ""

    def _finish(self, job: Job, state: str, code: str | None) -> None:
        job.update(finished=self.now, code=code, cancel=False)
        self.finishes[job["id"]] += 1
        self._move(job, state)

    def _move(self, job: Job, state: str) -> None:
        before = job["state"]
        if state != "retryable":
            job["waiting_for"] = None
        job["state"] = state
        if before == state:
            return
        name = "job_promoted"
        if state == "running":
            name = "attempt_started"
        elif state in FINISHED:
            name = "job_finished"
        elif before == "running":
            name = "attempt_finished"
        data = {key: job[key] for key in ("state", "attempt", "lease", "worker", "device")}
        self.events.append((name, job["id"], job["queue"], {**data, "before": before, "reserved_bytes": job["reserved"]}))


def rank(job: Job) -> tuple[int, int, int]:
    """The order of jobs: the higher priority, then the earlier due time, then the lower id."""
    return (-job["priority"], job["due"], job["id"])


def by_job(events: Iterable[tuple[Any, ...]]) -> dict[int | None, list[Any]]:
    """Order events for a comparison: each job's in their order, all others in any."""
    found: dict[int | None, list[Any]] = {}
    for event in events:
        found.setdefault(event[1], []).append(event)
    if None in found:
        found[None].sort(key=repr)
    return found
