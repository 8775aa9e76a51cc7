"""Owns the model's jobs and their life outside an attempt; knows nothing of rows, SQL or the store.

Written from the documented semantics. Times are integers in microseconds; `now` is moved by whoever drives the model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpuqueue.domain.settings import BackendSettings, DeviceSettings, QueueSettings

Job = dict[str, Any]
Ended = dict[str, Any]  # how an attempt ends: kind, state, code, due, spent, outcome, waiting_for, result

WAITING = ("scheduled", "available", "retryable")
FINISHED = ("completed", "cancelled", "discarded")
SECOND = 1_000_000
CLASS_BYTES = 64 * 2**20
MAX_CRASHES = 3
MOST_SUSPECTS = 2
LEASE_S = 30
REQUEST = "ollama.generate"
PARALLEL = 2  # requests to one model of the server at once
STALE_S = 30  # after which a backend that nobody asks any more may be back
SAFE_PART = 0.8  # of the lease; a worker that could not extend it by then claims nothing


class ModelJobs:
    """The jobs of one queue file. `demand_of` says what a job needs of a device, as (bytes, model)."""

    def __init__(
        self,
        now: int,
        queues: Mapping[str, QueueSettings],
        devices: Sequence[DeviceSettings],
        backends: Sequence[BackendSettings],
        *,
        placement: str,
        demand_of: Callable[[Job], tuple[int, str]],
        kind_of: Callable[[str], str],
        is_preemptible: Callable[[str], bool],
        is_continued: Callable[[str], bool],
    ) -> None:
        self.now = now
        self.queues = queues
        self.devices = {device.name: device for device in devices}
        self.largest = max((device.budget_bytes for device in devices), default=0)
        self.placement = placement
        self.demand_of = demand_of
        self.kind_of = kind_of
        self.is_preemptible = is_preemptible
        self.is_continued = is_continued
        self.jobs: dict[int, Job] = {}
        self.newest = 0
        self.pauses: dict[str, int | None] = {}
        self.workers: dict[str, Job] = {}  # those that have a row
        self.backends: dict[str, Job] = {
            item.name: {"available": True, "failures": 0, "retry_at": None, "back_at": None, "settings": item}
            for item in backends
        }
        self.lost: set[str] = set()  # the devices that cannot be read
        self.seen_lost: set[str] = set()  # those of which a worker has told it
        self.thrown: dict[str, list[tuple[int, int]]] = defaultdict(list)  # of each device: when work was lost, and how much
        self.noted: dict[str, list[str]] = {}  # the reasons of holds that were last told of
        self.events: list[tuple[Any, ...]] = []
        self.finishes: Counter[int] = Counter()
        self.retries: Counter[int] = Counter()
        self.asked: dict[int, str] = {}  # {request to the server: model}, also of those that were pruned

    def enqueue(self, job_id: int, **given: Any) -> None:
        assert job_id > self.newest, f"id {job_id} was given before"
        self.newest = job_id
        self.jobs[job_id] = job = {
            "id": job_id, "attempt": 0, "lease": 0, "crashes": 0, "suspect": False,
            "enqueued": self.now, "started": None, "finished": None,
            "worker": None, "model": "", "bytes": 0, "sized": False, "device": None, "reserved": 0, "waiting_for": None,
            "preemptible": False, "preemptions": 0, "asked": None, "cancel": False,
            "continues": False, "first_output": None, "passed": None,
            "code": None, "progress": None, "note": "", "lines": [], "output": [], "outcomes": [],
            "result": None, "state": "available" if given["due"] <= self.now else "scheduled", **given,
        }  # fmt: skip
        if job["task"] == REQUEST:
            self.asked[job_id] = job["arguments"]["model"]
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
        found = [
            job for job in self._jobs(state) if job["finished"] < before and job["device"] is None and job["id"] < self.newest
        ]
        return sorted(found, key=lambda job: job["finished"])

    def forget_demands(self) -> None:
        for job in self._jobs("available", "running"):  # the others forget theirs when they become available
            if job["sized"]:
                self._unsize(job)
            job["suspect"] = job["suspect"] and self.queues[job["queue"]].gpu

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
        if before in ("scheduled", "retryable") and state == "available":
            self._unsize(job)
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
