"""Owns who gets the model's devices: where a job finds room, and which running attempts are asked to make some."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from tests.properties.model_holds import ModelHolds
from tests.properties.model_jobs import CLASS_BYTES, PARALLEL, REQUEST, SECOND, Job, rank

HOUR, THROWN = 3600 * SECOND, 360 * SECOND


class ModelRoom(ModelHolds):
    """Room on devices."""

    parallel = PARALLEL

    def _room_in(self, queue: str) -> int:
        limit = self.queues[queue].concurrency
        return 10**6 if limit is None else limit - len(self._jobs("running", queue=queue))

    def _heads(self, queues: Iterable[str], room: int) -> list[Job]:
        """Of each queue and class of demand the first job, if it fits into the room; of equal priority a loaded model's first."""
        heads: dict[tuple[Any, ...], Job] = {}
        for queue in queues:
            for job in sorted(self._jobs("available", queue=queue), key=rank):
                if job["sized"] and job["bytes"] <= self.largest and job["device"] is None:
                    heads.setdefault((queue, job["model"], job["bytes"] // CLASS_BYTES), job)
        preferred = self._preferred()
        return sorted(
            (job for job in heads.values() if job["bytes"] <= room),
            key=lambda job: (-job["priority"], self._turn(job, preferred), rank(job)),
        )

    def _turn(self, job: Job, preferred: Collection[str]) -> int:
        """First those that were passed for long enough, then those whose model is loaded."""
        longest = max(settings.affinity_s for settings in self.devices.values())
        if job["passed"] is not None and self.now - job["passed"] >= longest * SECOND:
            return 0
        return 1 if job["model"] in preferred else 2

    def _preferred(self) -> set[str]:
        """The models that are loaded."""
        return {job["model"] for name in self.devices for job in self.on(name) if job["model"]}

    def place(self, job: Job, size: int, model: str, lost: Collection[str]) -> tuple[str | None, str]:
        """Where a job gets its memory, or why nowhere."""
        waits = []
        for name in self._in_order():
            there = self.on(name)
            if size > self.devices[name].budget_bytes:
                waits.append("never_fits")
            elif name in lost:
                waits.append("device_lost")
            elif wait := self._lack({**job, "model": model}, size, name, there):
                waits.append(wait)
            else:
                return name, ""
        return None, next((wait for wait in waits if wait != "never_fits"), "never_fits")

    def _in_order(self) -> list[str]:
        """The devices as they are tried: the fullest first, or the emptiest."""
        sign = -1 if self.placement == "pack" else 1
        return sorted(self.devices, key=lambda name: sign * self._reserved(name))

    def on(self, device: str) -> list[Job]:
        return [job for job in self.jobs.values() if job["device"] == device]

    def _reserved(self, device: str) -> int:
        return self._together((job, job["reserved"]) for job in self.on(device))

    def _together(self, sizes: Iterable[tuple[Job, int]]) -> int:
        """What jobs take: the requests to one model of a server as much as the largest of them, any other job its own."""
        taken: dict[Any, int] = {}
        for job, size in sizes:
            key = job["model"] if job["task"] == REQUEST else job["id"]
            taken[key] = max(taken.get(key, 0), size)
        return sum(taken.values())

    def _room_on(self, device: str) -> int:
        """How large a job may be at most that finds room, if it is for a model that is there already."""
        settings, there = self.devices[device], self.on(device)
        loaded = [job["reserved"] for job in there if job["task"] == REQUEST and job["model"]]
        is_full = len(there) >= settings.slots
        return settings.budget_bytes - self._reserved(device) + (0 if is_full else max(loaded, default=0))

    def _ask_for_room(self, worker: str) -> None:
        """Ask attempts to stop for the jobs of this worker's queues that only wait for their device."""
        may_start = [queue for queue in self.workers[worker]["gpu"] if self._room_in(queue) > 0]
        asked: list[Job] = []
        for job in self._heads(may_start, self.largest):
            for device in self._in_order():
                victims = None if device in self.lost else self._victims(job, device)
                if victims is not None:
                    asked += victims
                    break
        for victim in asked:
            victim["asked"] = victim["lease"]

    def _victims(self, job: Job, device: str) -> list[Job] | None:
        """Which attempts are asked so that the job fits the device; None when there is no way."""
        there = self.on(device)
        if any(other["state"] != "running" for other in there):
            return []  # what is cleaned up makes room by itself
        stay, victims = list(there), []
        for other in sorted(there, key=lambda other: -other["started"]):  # the one that lost least first
            if not self._lack(job, job["bytes"], device, stay):
                break
            if self._may_make_room(other, job["queue"]):
                stay.remove(other)
                if other["asked"] != other["lease"] and self._is_time(other):
                    victims.append(other)
        return None if self._lack(job, job["bytes"], device, stay) else victims

    def _lack(self, job: Job, size: int, device: str, there: Collection[Job]) -> str:
        """Why a job of this size does not fit beside others on a device; "" if it does."""
        settings = self.devices[device]
        same = [other for other in there if other["task"] == job["task"] == REQUEST and other["model"] == job["model"]]
        is_running = {other["id"] for other in there if other["state"] == "running"}
        if len(there) >= settings.slots:
            return "device_busy" if is_running else "clean_up"
        if len({other["model"] for other in [*there, job]} - {""}) > settings.max_models:
            return "max_models"
        if same and not any(other["id"] in is_running for other in same):
            return "clean_up"
        if len(same) >= self.parallel:
            return "parallel"
        together = self._together([*((other, other["reserved"]) for other in there), (job, size)])
        return "vram" if together > settings.budget_bytes else ""

    def _may_make_room(self, job: Job, queue: str) -> bool:
        """An attempt makes room for queues that its own yields to, unless it drains or has done so often enough."""
        settings = self.queues[job["queue"]]
        if settings.yield_mode != "preempt" or not job["preemptible"] or queue not in self._yielded_to(job["queue"]):
            return False
        if settings.max_preemptions is not None and job["preemptions"] >= settings.max_preemptions:
            return False
        return bool(job["continues"] or self._thrown(job["device"]) + self.now - job["started"] <= THROWN)

    def _thrown(self, device: str) -> int:
        """How much work preemptions threw away on a device in the last hour."""
        return sum(lost for at, lost in self.thrown[device] if at > self.now - HOUR)

    def _is_time(self, job: Job) -> bool:
        """Whether an attempt may be asked now: one that continues an earlier one and has no output yet is left to go on."""
        if job["continues"] and job["first_output"] is None:
            return not job["preemptions"]
        return bool(self.now >= (job["first_output"] or job["started"]) + self.queues[job["queue"]].min_run_s * SECOND)

    def _yielded_to(self, queue: str) -> set[str]:
        """The queues that come before this one, directly or through another."""
        first = set(self.queues[queue].yields_to)
        return first.union(*(self._yielded_to(other) for other in first))

    def stop_requests(self, worker: str) -> list[tuple[int, int, bool]]:
        """What a worker runs and must stop, and whether because a person cancelled it."""
        return [
            (job["id"], job["lease"], job["cancel"])
            for job in self._jobs("running")
            if job["worker"] == worker and (job["cancel"] or job["asked"] == job["lease"])
        ]
