"""Chooses and claims this worker's jobs, from the view and the policies; runs none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from gpuqueue.contract.hookspecs import WaitingJob
from gpuqueue.decisions.evaluation import decide_demand, decide_holds, failure_hold, limited, order, place, preemptions
from gpuqueue.decisions.policies import YIELDING, default_policies
from gpuqueue.decisions.policies.ordering import passed
from gpuqueue.decisions.view import build, largest_budget, serves
from gpuqueue.domain.answers import Demand, Hold, Placement
from gpuqueue.domain.claim import MOST_SUSPECTS, ClaimRules
from gpuqueue.domain.errors import REFUSAL, PluginFailed, StoreError, UnknownJob
from gpuqueue.domain.estimates import next_use_s
from gpuqueue.domain.job import Job, Lease, State
from gpuqueue.domain.memory import devices_for, may_have
from gpuqueue.domain.room import Share, Taken, fit, parallel_on
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import from_us, to_us
from gpuqueue.domain.view import QueueView, View
from gpuqueue.domain.windows import next_edge, parse_window, parse_zone
from gpuqueue.domain.yielding import yielded_to
from gpuqueue.worker.site import Site

DECISION_LASTS_S = 1.0  # holds are decided again after this, at every wakeup that may concern a device, and at a window's edge
SIZED_AT_ONCE = 100
SUSPECTS_AT_ONCE = 10 * MOST_SUSPECTS  # of one queue
SUSPECTS_READ = 1000  # of one queue; the first may all belong to tasks that this worker does not know
PUBLISH_EVERY_S = 2.0
logger = logging.getLogger("gpuqueue.worker")


class Dispatcher:
    """Decides with the same view and policies that explain a wait, then claims. Safe to call from several threads."""

    def __init__(
        self,
        site: Site,
        *,
        may_claim: Callable[[], bool],
        models_known: Callable[[], bool],
        is_preemptible: Callable[[str], bool],
        continues: Callable[[Job], bool],
        where_alone: Callable[[str], Literal["process", "worker"] | None],
        on_decided: Callable[[View, Mapping[str, Sequence[Hold]]], None] = lambda view, holds: None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = site.store
        self._plugins = site.plugins
        self._settings = site.settings
        self._devices = site.devices
        self._worker_id = site.worker_id
        self._serves = site.serves
        self._clock = site.clock
        self._log = site.log
        self._may_claim = may_claim
        self._models_known = models_known
        self._is_preemptible = is_preemptible
        self._continues = continues
        self._where_alone = where_alone
        self._on_decided = on_decided
        self._is_stopping = is_stopping
        self._preempt_at: datetime | None = None  # when the next attempt that may not be preempted yet can be
        self._deciding = threading.Lock()
        self._decided_at_s = float("-inf")
        self._holds: dict[str, tuple[Hold, ...]] = {}
        self._noted = False
        self._common = {"", *default_policies()}  # plugins that every process has
        self._published: dict[str, list[Hold]] = {}
        self._published_at_s = 0.0
        self._unsizable: dict[str, Hold] = {}  # queues with a job that a plugin failed to size
        self.view: View | None = None
        self.rules = ClaimRules()
        self.plain: tuple[QueueSettings, ...] = ()
        self.gpu: tuple[QueueSettings, ...] = ()
        self.suspects: tuple[int, ...] = ()  # to claim first, each for a process of its own
        self._lone: list[int] = []  # suspects that no process can import
        self._parallel = {item.name: parallel_on(item, site.settings.backends) for item in site.settings.devices}

    def decide(self, *, force: bool = False) -> View:
        """Decide the holds again when that is due; refuses the waiting jobs of queues that are held with `refuse`."""
        with self._deciding:
            if self.view is not None and not force and self._clock.monotonic() - self._decided_at_s < DECISION_LASTS_S:
                return self.view
            now = self._clock.now()
            with self._store.snapshot() as reads:
                view = limited(build(reads, self._settings, now), self._plugins)
                plain = [name for name, queue in view.queues.items() if not queue.settings.gpu and self._serves(name)]
                suspects = {name: reads.suspects(name, limit=SUSPECTS_READ) for name in plain}
            holds = decide_holds(view, self._plugins, self._unsizable)
            held = frozenset(name for name, reasons in holds.items() if _holds(reasons))
            queues = {name: item.settings for name, item in view.queues.items()}
            open_queues = [queue for name, queue in queues.items() if name not in held and self._serves(name)]
            self.plain = tuple(queue for queue in open_queues if not queue.gpu)
            self.gpu = tuple(queue for queue in open_queues if queue.gpu)
            self._choose([suspects.get(queue.name, ()) for queue in self.plain])
            self.rules = ClaimRules(held, queues, largest_budget(self._settings), self._parallel)
            self.view = view
            self._decided_at_s = self._clock.monotonic()
            if not self._noted or _reasons(self._holds) != _reasons(holds):
                self._store.queues.note_holds(holds, now_us=to_us(now))
                self._tell(holds)
                self._noted = True
            self._holds = holds
            self._on_decided(view, holds)
            self._publish(holds)
            for name, reasons in holds.items():
                # Includes jobs that no device could ever take: their callers would wait for nothing.
                if any(hold.refuse for hold in reasons) and self._has_available(name):
                    while refused := self._store.jobs.refuse_waiting(name, message=REFUSAL, now_us=to_us(now)):
                        self._log.refused(name, len(refused))  # some hundred jobs at a time
            return view

    @property
    def _serves_devices(self) -> bool:
        return any(queue.gpu and self._serves(queue.name) for queue in self._settings.queues.values())

    @property
    def is_settled(self) -> bool:
        """Whether jobs for devices may start, if it serves any; not before the models that are there are known."""
        return self._models_known() or not self._serves_devices

    def _has_available(self, queue: str) -> bool:
        with self._store.reading() as reads:
            return reads.has_available(queue)

    def _tell(self, holds: Mapping[str, tuple[Hold, ...]]) -> None:
        for name, reasons in holds.items():
            if _reasons({name: reasons}) != _reasons({name: self._holds.get(name, ())}):
                if reasons:
                    self._log.queue_held(name, reasons)
                else:
                    self._log.queue_released(name)

    def _publish(self, holds: Mapping[str, tuple[Hold, ...]]) -> None:
        """Publish the holds that other processes cannot know: those of this worker's own plugins and of failing ones."""
        own = {
            name: [hold for hold in reasons if hold.source == "failure" or hold.plugin not in self._common]
            for name, reasons in holds.items()
        }
        own = {name: reasons for name, reasons in own.items() if reasons}
        now_s = self._clock.monotonic()
        if own == self._published or (own and self._published and now_s - self._published_at_s < PUBLISH_EVERY_S):
            return
        self._store.workers.publish_holds(self._worker_id, own)
        self._published, self._published_at_s = own, now_s

    def next_lone(self) -> int | None:
        """Return a suspect that no process can import: it runs when this worker has nothing else to do."""
        return self._lone.pop(0) if self._lone else None

    def _choose(self, suspects: Sequence[Sequence[tuple[int, str]]]) -> None:
        """Choose those of each queue whose tasks this worker knows."""
        places = {task: self._where_alone(task) for task in {task for found in suspects for _, task in found}}
        in_process: list[int] = []
        self._lone = []
        for found in suspects:
            in_process += [job_id for job_id, task in found if places[task] == "process"][:SUSPECTS_AT_ONCE]
            self._lone += [job_id for job_id, task in found if places[task] == "worker"][:SUSPECTS_AT_ONCE]
        self.suspects = tuple(in_process)

    def claim_for_devices(self, *, is_alone: bool = False) -> Iterator[Lease]:
        """Claim the jobs that get a device now, and yield each; decides again first, as devices and rows change meanwhile.

        `is_alone`: none, because a job runs that must be the only one in this process.
        """
        self._move_due()
        if is_alone or not self._serves_devices or not self._may_claim() or not self._models_known():
            return
        view = self.decide(force=True)
        if self._size(view):
            view = self.decide(force=True)
        room_bytes = max((device.room_bytes for device in view.devices.values()), default=0)
        candidates = self._candidates(view, self.gpu, room_bytes=room_bytes)
        if candidates:
            view = self._with_readings(view)
        for job in candidates:
            try:
                lease = self._claim_placed(job, view, candidates)
            except StoreError:
                raise
            except Exception:  # an answer for one job must not keep the others from starting
                logger.exception("job %d could not be placed on a device", job.id)
                continue
            if lease is not None:
                yield lease
                view = self._with_readings(self.decide(force=True))
        self._preempt(view)

    def _claim_placed(self, job: Job, view: View, candidates: Sequence[Job]) -> Lease | None:
        answer = place(job, view, self._plugins)
        if not isinstance(answer, Placement):
            return None
        # A queue that yields has candidates too: one that could start now is passed first.
        able = [other for other in candidates if other is job or not self._holds.get(other.queue)]
        return self._store.attempts.claim_placed(
            job,
            answer,
            worker_id=self._worker_id,
            queue=view.queues[job.queue].settings,
            device=view.devices[answer.device].settings,
            rules=self.rules,
            preemptible=self._is_preemptible(job.task),
            continues=self._continues(job),
            passed=passed(job, able) or passed(job, candidates),
            now_us=self._clock.wall(),
        )

    def _with_readings(self, view: View) -> View:
        """Return the view with fresh readings of this machine's devices: a job starts only if the memory is free now."""
        devices = {
            name: replace(device, reading=self._devices[name].read_now()) if name in self._devices else device
            for name, device in view.devices.items()
        }
        return replace(view, devices=devices)

    def _preempt(self, view: View) -> None:
        """Preempt running attempts for jobs that wait only for their device."""
        self._preempt_at = None
        running = {item.queue for device in view.devices.values() for item in device.reservations if item.preemptible}
        first = {name for queue in running if queue in view.queues for name in yielded_to(view.queues[queue].settings, view)}
        queues = [queue for queue in self.gpu if queue.name in first and _may_start_one(view.queues[queue.name])]
        if not running:
            return
        jobs = self._candidates(view, queues, room_bytes=largest_budget(self._settings)) if queues else []
        if jobs:
            view = self._with_readings(view)
        waiting = [WaitingJob(job, Demand(job.demand_bytes, job.model), _there(job, view)) for job in jobs]
        try:
            chosen = preemptions(waiting, view, self._plugins)
        except PluginFailed as error:
            logger.error("no attempt is preempted: %s", error)
            return
        for item in chosen:
            if item.not_before is not None:
                self._preempt_at = min(self._preempt_at or item.not_before, item.not_before)
            elif self._store.attempts.request_preemption(item.job_id, item.lease):
                self._log.preemption_requested(item)

    def next_models(self, device: str, job_id: int) -> list[str]:
        """Return the models of the next jobs for a device, the first one first, that fit there together once this job has ended.

        Next are the jobs that could start but for the device, then those that wait for other jobs only: the first of each kind.
        """
        view = self.decide(force=True)
        # Another worker's next job counts too: it would have to load the model again.
        workers = [worker for worker in view.workers if not (worker.id == self._worker_id and self._is_stopping())]
        near = {
            name: item
            for name, item in view.queues.items()
            if item.settings.gpu and any(serves(worker, name) for worker in workers) and not _holds(self._holds.get(name, ()))
        }
        queues = [item.settings for item in near.values()]
        found = self._candidates(view, queues, room_bytes=largest_budget(self._settings), ending=job_id)
        found.sort(key=lambda job: bool(self._holds.get(job.queue)) or not _may_start_one(near[job.queue]))
        there: list[Taken] = [item for item in view.devices[device].reservations if item.job_id != job_id]
        models: list[str] = []
        for job in found:
            if device not in _devices(job, view):
                continue
            there.append(Share(job.task, job.model, job.demand_bytes))
            if not fit(view.devices[device].settings, there):
                break  # its start has the others unloaded
            models += [job.model] if job.model and job.model not in models else []
        return models

    def next_use_s(self, model: str) -> float | None:
        """Return in how many seconds a job is expected to need a model again; None when that is not known."""
        view = self.view
        return None if view is None or self._is_stopping() else next_use_s(view.estimates, model, self._clock.now())

    def next_change(self) -> datetime | None:
        """Return when time alone may change something: a job is due, a window opens or closes, a pause ends."""
        view = self.view
        if view is None:
            return None
        with self._store.reading() as reads:
            due_us = reads.next_due_us()
        times = [] if due_us is None else [from_us(due_us)]
        if self._preempt_at is not None:
            times.append(self._preempt_at)
        times += [hold.until for reasons in self._holds.values() for hold in reasons if hold.until is not None]
        for item in view.queues.values():
            written = [*item.settings.pause, *(rule.at for rule in item.settings.windows)]
            zone = parse_zone(item.settings.timezone) if written else None
            for text in written:  # each on its own: one that opens inside another may limit more
                edge = next_edge([parse_window(text)], zone or UTC, view.now)
                if edge is not None:
                    times.append(edge)
        return min(times, default=None)

    def _move_due(self) -> None:
        """Promote and expire the jobs that are due.

        A claim for a device is proposed from rows, which must show the job as available. And a due job that no claim looks
        for, because its queue is held or no thread is free, would make `next_change` request a tick at once, again and again.
        """
        now_us = self._clock.wall()
        with self._store.reading() as reads:
            due_us = reads.next_due_us()
        if due_us is not None and due_us <= now_us:
            self._store.jobs.move_due(now_us=now_us)

    def _size(self, view: View) -> bool:
        """Size waiting GPU jobs, which puts them in their demand classes; returns whether a hold changed.

        A queue is held while a plugin fails to size one of its jobs, so no other queue yields to it meanwhile.
        """
        unsizable: dict[str, Hold] = {}
        for name, item in view.queues.items():
            if not (item.settings.gpu and self._serves(name)):
                continue
            with self._store.reading() as reads:
                jobs = reads.unsized(name, limit=SIZED_AT_ONCE)
            demands: list[tuple[int, Demand]] = []
            for job in jobs:
                try:
                    demands.append((job.id, decide_demand(job, view, self._plugins)))
                except PluginFailed as error:
                    unsizable[name] = failure_hold(error, f"job {job.id} could not be sized: ")
                    break
            if demands:
                self._store.jobs.set_demands(demands, largest_bytes=largest_budget(self._settings))
        changed = unsizable.keys() != self._unsizable.keys()
        self._unsizable = unsizable
        return changed

    def _candidates(
        self, view: View, queues: Sequence[QueueSettings], *, room_bytes: int, ending: int | None = None
    ) -> list[Job]:
        """Return the first job of each kind in order; with `ending` also that one, if it waits again once it is cleaned up."""
        with self._store.snapshot() as reads:
            found = [job for queue in queues for job in reads.candidates(queue.name, room_bytes=room_bytes)]
            with suppress(UnknownJob):
                own = None if ending is None else reads.job(ending)
                if own is not None and own.state is State.AVAILABLE and own.device:
                    found += [own] if any(queue.name == own.queue for queue in queues) else []
        try:
            return order(found, view, self._plugins)
        except PluginFailed as error:
            logger.error("no job starts on a device: %s", error)
            return []


def _there(job: Job, view: View) -> tuple[str, ...]:
    """Return the devices on which free memory would let the job start: attempts on others are not preempted for it."""
    queue = view.queues[job.queue].settings
    return tuple(name for name in _devices(job, view) if may_have(view.devices[name], job.model, queue, view))


def _devices(job: Job, view: View) -> tuple[str, ...]:
    found = devices_for(job.wanted_device, job.model, view.queues[job.queue].settings, view)
    return tuple(device.settings.name for device in found)


def _may_start_one(queue: QueueView) -> bool:
    limit = queue.settings.concurrency
    return limit is None or queue.running_count < limit


def _holds(reasons: Sequence[Hold]) -> bool:
    # The claim decides yielding again, under the lock: the work that the queue yielded to may be gone by then.
    return any(hold.plugin != YIELDING for hold in reasons)


def _reasons(holds: dict[str, tuple[Hold, ...]]) -> dict[str, list[str]]:
    return {name: sorted(hold.reason for hold in reasons) for name, reasons in holds.items()}
