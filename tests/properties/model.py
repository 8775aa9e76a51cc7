"""Owns the model: what the queue promises, told with plain dictionaries of jobs; here claims and the end of attempts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from tests.properties.model_jobs import (
    FINISHED,
    MAX_CRASHES,
    MOST_SUSPECTS,
    Ended,
    Job,
    rank,
)
from tests.properties.model_room import ModelRoom


class Model(ModelRoom):
    """All that a queue promises."""

    def claim(self, worker: str, room: Mapping[str, int], suspects: Collection[int] = ()) -> list[int]:
        """Claim jobs without a device; returns their ids in the order of the claim: first the suspects that are asked for."""
        found = self.workers.get(worker, {})
        if not found.get("plain") or not self.may_claim(worker) or not any(room.values()):
            return []
        self.move_due()
        left = {}
        for queue in found["plain"]:
            if self.admits(queue, found["held"]):
                left[queue] = self._room_in(queue)
        free, stuck, taken = dict(room), set(), []
        running = sum(job["suspect"] and job["device"] is None for job in self._jobs("running"))
        for job in map(self.jobs.get, suspects):
            if job is None or job["state"] != "available" or not job["suspect"] or left.get(job["queue"], 0) <= 0:
                continue
            if running < MOST_SUSPECTS and free.get("thread", 0) > 0:
                running += 1
                free["thread"] -= 1
                left[job["queue"]] -= 1
                taken.append(job)
        waiting = [job for queue in left for job in self._jobs("available", queue=queue) if not job["suspect"]]
        for job in sorted(waiting, key=rank):
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
        room = max(self._room_on(name) for name in self.devices)
        taken = []
        heads = self._heads(self.workers[worker]["gpu"], room)
        for job in heads:
            device, _reason = self.place(job, job["bytes"], job["model"], self.lost)
            able = [other for other in heads if other is job or not self.holds_of(other["queue"])]
            first = _passed(job, able) or _passed(job, heads)
            if device is not None and self.claim_placed(worker, job["id"], device, job["bytes"]):
                job["continues"] = self.is_continued(job["task"])
                if first is not None and first["state"] == "available" and first["passed"] is None:
                    first["passed"] = self.now
                taken.append(job["id"])
                self.decide(worker)
        self._ask_for_room(worker)
        return taken

    def claim_placed(self, worker: str, job_id: int, device: str, reserved: int) -> bool:
        """Claim one job for a device, whoever proposed it; everything that must hold is asked again."""
        self.move_due()
        job = self.jobs[job_id]
        if job["state"] != "available" or job["device"] is not None or not job["sized"]:
            return False
        if not self.admits(job["queue"], self.workers[worker].get("held", ())) or self._room_in(job["queue"]) <= 0:
            return False
        there = self.on(device)
        if self._lack(job, reserved, device, there):
            return False
        if job["model"] not in {other["model"] for other in there} | {""}:
            self.events.append(("model_loading", None, None, {"device": device, "model": job["model"]}))
        self._start(job, worker, device, reserved)
        job["preemptible"] = self.is_preemptible(job["task"])
        job["continues"] = False  # as a proposal from elsewhere says
        job["first_output"] = None
        return True

    def _size(self, queue: str) -> None:
        for job in self._jobs("available", queue=queue):
            self.size_one(job)

    def size_one(self, job: Job) -> bool:
        """Ask what a waiting job needs, where that is not known."""
        if job["state"] != "available" or job["sized"] or job["model"]:
            return False
        job["bytes"], job["model"] = self.demand_of(job)
        job["sized"] = True
        return True

    def _start(self, job: Job, worker: str, device: str | None = None, reserved: int = 0) -> None:
        job.update(lease=job["lease"] + 1, attempt=job["attempt"] + 1, worker=worker, started=self.now)
        job.update(device=device, reserved=reserved, progress=None, note="")
        self._move(job, "running")

    def holds_lease(self, job_id: int, lease: int) -> bool:
        job = self.jobs.get(job_id)
        return job is not None and job["lease"] == lease and job["state"] == "running"

    def finish(self, job_id: int, lease: int, ended: Ended) -> bool:
        """Write how an attempt ended; returns False, and changes nothing, when the lease was lost."""
        if not self.holds_lease(job_id, lease):
            return False
        job = self.jobs[job_id]
        if ended["kind"] == "crashed" and (job["crashes"] + 1 >= MAX_CRASHES or not job["cancel"]):
            job["outcomes"].append("crashed")
            job.update(crashes=job["crashes"] + 1, attempt=job["attempt"] - 1, code="crashed")
            if job["crashes"] >= MAX_CRASHES:
                self._finish(job, "discarded", "crashed")
            else:
                self._move(job, "available")
        elif ended["kind"] == "completed":
            job["result"] = ended["result"]
            self._finish(job, "completed", None)
        elif ended["kind"] == "ended" or job["cancel"]:
            state, code = (ended["state"], ended["code"]) if ended["kind"] == "ended" else ("cancelled", "cancelled")
            job["outcomes"].append(state)
            job["suspect"] = False
            self._finish(job, state, code)
        else:
            job["outcomes"].append(ended["outcome"])
            job["attempt"] -= 0 if ended["spent"] else 1
            job["code"] = ended["code"] or job["code"]
            job["waiting_for"] = ended["waiting_for"]
            if ended["outcome"] == "preempted":
                job["preemptions"] += 1
                if job["device"] is not None and not (job["continues"] and job["output"]):
                    self.thrown[job["device"]].append((self.now, self.now - job["started"]))
            if ended["outcome"] not in ("released", "preempted"):
                job["passed"] = None
                job["due"] = ended["due"]
                job["suspect"] = False
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
        self.events.append(
            ("device_released", job_id, job["queue"], {"device": job["device"], "reserved_bytes": job["reserved"]})
        )
        job.update(device=None, reserved=0)
        if not job["sized"]:
            job["model"] = ""
        return True

    def rescue(self, dead: str, by: str, executing: Collection[int] | None) -> list[Job]:
        """Take back what a dead worker held; returns the jobs whose device the rescuer must clean up."""
        self.workers.pop(dead, None)
        held = [job for job in self._jobs("running") if job["worker"] == dead]
        for job in held:
            crashed = executing is None or job["id"] in executing
            was_alone = len(held) == 1 if executing is None else crashed
            job["outcomes"].append("crashed" if crashed else "released")
            is_charged = job["suspect"] and was_alone
            job["crashes"] += int(is_charged)
            job["suspect"] = job["suspect"] or crashed
            job["attempt"] -= 1
            job["lease"] += 1
            code = "crashed" if crashed else job["code"]
            if job["cancel"]:
                self._finish(job, "cancelled", code)
            elif is_charged and job["crashes"] >= MAX_CRASHES:
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
            self.events.append(("job_logged", job_id, None, {"seq": len(job["lines"]), "lease": lease}))
        if progress is not None:
            job["progress"], job["note"] = progress
            data = {"progress": progress[0], "note": progress[1], "attempt": job["attempt"], "lease": lease}
            self.events.append(("job_progressed", job_id, job["queue"], data))

    def reasons(self, job_id: int) -> set[str]:
        """Every reason why a job does not start now, or does not go on."""
        job = self.jobs[job_id]
        queue = job["queue"]
        if job["state"] == "running":
            return set() if self.is_alive(job["worker"]) else {"worker_gone"}
        if job["state"] in FINISHED:
            return set()
        found = set(self.holds_of(queue))
        found |= {job["state"]} & {"scheduled", "retryable"}
        if not self.is_served(queue):
            found.add("no_worker")
        if self._room_in(queue) <= 0:
            found.add("concurrency")
        if job["state"] == "available" and job["code"] == "crashed" and not self.queues[queue].gpu:
            found.add("suspect")
        if job["device"] is not None:
            found.add("clean_up")
        elif self.queues[queue].gpu and job["state"] == "available":
            size, model = (job["bytes"], job["model"]) if job["sized"] else self.demand_of(job)
            lost = set() if "device_lost" in found else self.seen_lost  # which is not said again of the job
            device, reason = self.place(job, size, model, lost)
            found |= set() if device else {reason}
        if job["state"] == "available" and any(rank(other) < rank(job) for other in self._startable(queue)):
            found.add("behind")
        return found

    def counts(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {queue: {} for queue in self.queues}
        for (queue, state), count in Counter((job["queue"], job["state"]) for job in self.jobs.values()).items():
            found[queue][state] = count
        return found


def _passed(job: Job, others: Sequence[Job]) -> Job | None:
    """The one that comes before the job but for its model, which is another one."""
    first = min(others, key=lambda other: (-other["priority"], rank(other)))
    return first if first["priority"] == job["priority"] and first["model"] != job["model"] else None
