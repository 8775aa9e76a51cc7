"""Turns a view and the plugins' answers into holds, demands, placements and reasons; changes nothing.

The same evaluation serves a worker that claims and a person who asks why a job waits; the claim itself is elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from gpuqueue.contract.hookspecs import (
    ChoosePreemptionsDetails,
    JobDemandDetails,
    OrderCandidatesDetails,
    PlaceJobDetails,
    QueueHoldDetails,
    QueueLimitsDetails,
    WaitingJob,
)
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.decisions.expectations import expect
from gpuqueue.decisions.policies import DEVICE_HEALTH, queue_in_force
from gpuqueue.decisions.policies.preemption import weigh
from gpuqueue.decisions.view import serves
from gpuqueue.domain.answers import Demand, Hold, Limits, Placement, Preemption, Wait
from gpuqueue.domain.claim import MOST_SUSPECTS
from gpuqueue.domain.errors import PluginFailed
from gpuqueue.domain.explanation import FAR, Explanation, QueueContext
from gpuqueue.domain.job import Job, State
from gpuqueue.domain.memory import devices_for, may_have, whole_budget
from gpuqueue.domain.rates import level
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.view import View
from gpuqueue.domain.yielding import yielded_to, yielding_order

NAMED_JOBS = 5


def limited(view: View, plugins: Plugins) -> View:
    """Return the view with each queue's current limits; a plugin that fails is noted, and holds the queue."""
    queues = {}
    for name, queue in view.queues.items():
        settings, reasons, failed = queue.settings, [], None
        try:
            for _, limits in plugins.each("queue_limits", QueueLimitsDetails(queue.settings, view.now)):
                tighter = queue_in_force(_tighter(settings, limits), plugins.blocked)
                if tighter != settings:
                    settings = tighter
                    reasons.append(limits.reason)
        except PluginFailed as error:
            failed = failure_hold(error)
        left = None
        if settings.rate is not None:
            left = level(settings.rate, queue.rate_before, (view.now - (queue.rate_at or view.now)).total_seconds())
        limited_by = "; ".join(filter(None, reasons))
        queues[name] = replace(queue, settings=settings, rate_level=left, limited_by=limited_by, limits_failed=failed)
    return replace(view, queues=queues)


def _tighter(settings: QueueSettings, limits: Limits) -> QueueSettings:
    concurrency, rate = settings.concurrency, settings.rate
    if limits.concurrency is not None and (concurrency is None or limits.concurrency < concurrency):
        concurrency = limits.concurrency
    if limits.rate is not None and (rate is None or limits.rate.count / limits.rate.per_s < rate.count / rate.per_s):
        rate = limits.rate
    return replace(settings, concurrency=concurrency, rate=rate)


def decide_holds(view: View, plugins: Plugins, failed: Mapping[str, Hold] | None = None) -> dict[str, tuple[Hold, ...]]:
    """Return every queue's holds; a queue comes after those that it yields to. A failing plugin holds the queue.

    `failed` has the holds of queues in which a plugin failed on a job elsewhere.
    """
    holds: dict[str, tuple[Hold, ...]] = {}
    for queue in yielding_order({name: item.settings for name, item in view.queues.items()}):
        found = []
        paused = view.queues[queue.name].paused
        if paused is not None:
            why = f" ({paused.reason})" if paused.reason else ""
            advice = f"gpuqueue resume {queue.name}"
            found.append(Hold("paused", f"paused by {paused.by}{why}", paused.until, advice=advice, source="pause"))
        failures = (view.queues[queue.name].limits_failed, (failed or {}).get(queue.name))
        found += [failure for failure in failures if failure is not None]
        try:
            for plugin, hold in plugins.each("queue_hold", QueueHoldDetails(queue, view, dict(holds))):
                found.append(replace(hold, plugin=plugin, source="plugin"))
        except PluginFailed as error:
            found.append(failure_hold(error))
        holds[queue.name] = tuple(found)
    return holds


def failure_hold(error: PluginFailed, prefix: str = "") -> Hold:
    """Return the hold of a queue, or of a job, about which a plugin fails."""
    advice = f'fix the plugin, or disable it: [plugins] block = ["{error.plugin}"]'
    return Hold("plugin_failed", f"{prefix}{error}", plugin=error.plugin, advice=advice, source="failure")


def known_holds(view: View, plugins: Plugins) -> dict[str, tuple[Hold, ...]]:
    """Return every queue's holds, including those of plugins that only workers have."""
    holds = decide_holds(view, plugins)
    for worker in view.workers:
        for queue, published in worker.holds.items():
            if queue in holds and serves(worker, queue):
                unknown = [hold for hold in published if hold.source == "failure" or not plugins.has(hold.plugin)]
                holds[queue] += tuple(hold for hold in unknown if hold not in holds[queue])
    return holds


def decide_demand(job: Job, view: View, plugins: Plugins) -> Demand:
    """Return the job's device requirements; a job that no plugin sizes runs alone. Raises: PluginFailed."""
    demand: Demand | None = plugins.first("job_demand", JobDemandDetails(job, view.queues[job.queue].settings, view))
    return demand or Demand(whole_budget(view))


def order(candidates: Sequence[Job], view: View, plugins: Plugins) -> list[Job]:
    """Return the candidates in the order to try them. Raises: PluginFailed."""
    known = {job.id: job for job in candidates}
    for plugin, ordered in plugins.each("order_candidates", OrderCandidatesDetails(tuple(candidates), view)):
        try:
            return [known[job.id] for job in ordered]
        except (AttributeError, KeyError):
            error = TypeError(f"returned {ordered!r}, which is not a list of the given candidates")
            raise PluginFailed(plugin, "order_candidates", error) from error
    return list(candidates)


def place(job: Job, view: View, plugins: Plugins) -> Placement | Hold:
    """Return the job's device, or why it waits; a failing plugin makes it wait."""
    details = PlaceJobDetails(job, Demand(job.demand_bytes, job.model), view.queues[job.queue].settings, view)
    try:
        for plugin, answer in plugins.each("place_job", details):
            if isinstance(answer, Wait):
                return _held(answer, plugin)
            if isinstance(answer, Placement) and answer.device in view.devices:
                return answer
            devices = ", ".join(view.devices) or "none"
            raise PluginFailed(plugin, "place_job", ValueError(f"returned {answer!r}, an unknown device. Devices: {devices}"))
    except PluginFailed as error:
        return failure_hold(error)
    return Hold("no_device", "no plugin places jobs on a device", source="job")


def _held(wait: Wait, plugin: str) -> Hold:
    return Hold(
        wait.reason,
        wait.detail,
        wait.until,
        plugin=plugin,
        ends_with_jobs=wait.ends_with_jobs,
        advice=wait.advice,
        source="plugin",
    )


def preemptions(waiting: Sequence[WaitingJob], view: View, plugins: Plugins) -> list[Preemption]:
    """Return the attempts to stop, for jobs that wait for their device or for another reason. Raises: PluginFailed."""
    chosen: list[Preemption] = []
    for plugin, answer in plugins.each("choose_preemptions", ChoosePreemptionsDetails(tuple(waiting), view)):
        wrong = [item for item in answer if not isinstance(item, Preemption)]
        if wrong:
            raise PluginFailed(plugin, "choose_preemptions", TypeError(f"returned {wrong[0]!r}, not a Preemption"))
        chosen += answer
    return chosen


def explain(job: Job, view: View, plugins: Plugins, context: QueueContext, *, worker_command: str) -> Explanation:
    """Explain a job's state: every reason, with numbers and times, and what to expect.

    `worker_command` is the command that starts a worker for it.
    """
    if job.state is State.RUNNING:
        where = f" on {job.device}" if job.device else ""
        stopping = "; asked to stop" if job.cancel_requested else ""
        summary = f"running{where}, attempt {job.attempt} of {job.max_attempts}{stopping}"
        if job.worker_id is not None and all(worker.id != job.worker_id for worker in view.workers):
            detail = f"its worker {job.worker_id} is no longer running; another worker will take over the job"
            gone = Hold("worker_gone", detail, advice=f"start a worker: {worker_command}", source="worker")
            return Explanation(job.id, job.state, summary, (gone,), view.now, gone.advice)
        return Explanation(job.id, job.state, summary, (), view.now, expected=expect(job, view, (), {}, context))
    if job.state is State.COMPLETED:
        return Explanation(job.id, job.state, f"completed in attempt {job.attempt}", (), view.now)
    if job.state in (State.CANCELLED, State.DISCARDED):
        why = f": {job.error.message} ({job.error.code})" if job.error else ""
        advice = f"gpuqueue retry {job.id}"
        if job.error is not None and job.error.code == "caller_fault":  # the same request would fail again
            advice = "correct the request as the message says and enqueue it again"
        return Explanation(job.id, job.state, f"{job.state}{why}", (), view.now, advice)
    holds = known_holds(view, plugins)
    reasons = _waiting_reasons(job, view, plugins, holds[job.queue], context, worker_command)
    advice = next((hold.advice for hold in reasons if hold.advice), "")
    summary = "waiting" if reasons else "ready; a worker will pick it up shortly"
    expected = expect(job, view, reasons, holds, context, lambda: _stops(job, view, plugins))
    return Explanation(job.id, job.state, summary, tuple(reasons), view.now, advice, expected)


def _stops(job: Job, view: View, plugins: Plugins) -> Sequence[Preemption]:
    """Return the running attempts that are stopped for a waiting job; none if that is not known."""
    queues = {item.queue for device in view.devices.values() for item in device.reservations if item.preemptible and item.running}
    if not any(name in view.queues and job.queue in yielded_to(view.queues[name].settings, view) for name in queues):
        return ()
    queue = view.queues[job.queue].settings
    try:
        demand = _demand(job, view, plugins)
        devices = devices_for(job.wanted_device, demand.model, queue, view)
        there = tuple(device.settings.name for device in devices if may_have(device, demand.model, queue, view))
        return preemptions([WaitingJob(job, demand, there)], view, plugins)
    except PluginFailed:
        return ()


def _demand(job: Job, view: View, plugins: Plugins) -> Demand:
    return decide_demand(job, view, plugins) if job.demand_bytes == 0 else Demand(job.demand_bytes, job.model)


def _waiting_reasons(
    job: Job, view: View, plugins: Plugins, queue_holds: Sequence[Hold], context: QueueContext, worker_command: str
) -> list[Hold]:
    reasons: list[Hold] = []
    queue = view.queues[job.queue]
    if job.state is State.SCHEDULED:
        reasons.append(Hold("scheduled", "not due", job.scheduled_at, source="job"))
    if job.state is State.RETRYABLE:
        error = f"{job.error.message}; " if job.error else ""
        waiting = f"waiting for {job.waiting_for or 'its next attempt'}"
        reasons.append(Hold("retryable", f"{error}{waiting}", job.scheduled_at, source="job"))
    if not queue.served:
        advice = f"start a worker: {worker_command}"
        reasons.append(Hold("no_worker", f"no worker serves queue {job.queue!r}", advice=advice, source="worker"))
    reasons += queue_holds
    limit = queue.settings.concurrency
    if limit is not None and queue.running_count >= limit:
        jobs = ", ".join(f"job {item.id}" for item in context.running[:NAMED_JOBS])
        why = f"; limit set by {queue.limited_by}" if queue.limited_by else ""
        detail = f"{job.queue} is at its concurrency limit: {queue.running_count} of {limit} running ({jobs}){why}"
        reasons.append(Hold("concurrency", detail, ends_with_jobs=True, source="job"))
    if context.busy:
        count = len(context.busy)
        jobs = ", ".join(f"job {item.id}" for item in context.busy[:NAMED_JOBS]) + (", …" if count > NAMED_JOBS else "")
        detail = f"the only thread is busy: {jobs}" if count == 1 else f"all {count} threads are busy: {jobs}"
        reasons.append(Hold("threads", detail, ends_with_jobs=True, source="worker"))
    if job.state is State.AVAILABLE and job.error is not None and job.error.code == "crashed" and not queue.settings.gpu:
        where = f"it runs next in its own process, at a worker that knows {job.task}"
        detail = f"{job.error.message}; {where}; at most {MOST_SUSPECTS} such processes run at once"
        reasons.append(Hold("suspect", detail, ends_with_jobs=True, source="job"))
    if job.device is not None:
        detail = f"waiting for its last attempt's memory on {job.device} to be released"
        reasons.append(Hold("clean_up", detail, ends_with_jobs=True, source="job"))
    elif queue.settings.gpu and job.state is State.AVAILABLE:
        reasons += _device_reasons(job, view, plugins, said=queue_holds)
    ahead_count = context.ahead_count(job.queue)
    if ahead_count and job.state is State.AVAILABLE:
        many = "at least " if ahead_count >= FAR else ""
        jobs = f"job in {job.queue} is" if ahead_count == 1 else f"jobs in {job.queue} are"
        reasons.append(Hold("behind", f"{many}{ahead_count} {jobs} ahead of it", ends_with_jobs=True, source="job"))
    return reasons


def _device_reasons(job: Job, view: View, plugins: Plugins, *, said: Sequence[Hold]) -> list[Hold]:
    try:
        demand = _demand(job, view, plugins)
    except PluginFailed as error:
        return [failure_hold(error)]
    if any(hold.plugin == DEVICE_HEALTH for hold in said):  # the queue's hold already reports the lost devices
        view = replace(view, devices={name: replace(device, reading=None) for name, device in view.devices.items()})
    answer = place(replace(job, demand_bytes=demand.vram_bytes, model=demand.model), view, plugins)
    reasons = [replace(answer, detail=f"{answer.detail}{_costs(job, demand, view, plugins)}")] if isinstance(answer, Hold) else []
    longest_s = max((device.settings.affinity_s for device in view.devices.values()), default=0.0)
    if job.passed_at is not None and (view.now - job.passed_at).total_seconds() < longest_s:
        until = job.passed_at + timedelta(seconds=longest_s)
        detail = "jobs for a loaded model start before it, until then at the latest (affinity)"
        reasons.append(Hold("passed", detail, until, ends_with_jobs=True, source="job"))
    return reasons


def _costs(job: Job, demand: Demand, view: View, plugins: Plugins) -> str:
    """Return what the attempts that a job could preempt need yet, and what stopping them costs."""
    if not plugins.has("preemption"):
        return ""
    queue, said = view.queues[job.queue].settings, ""
    for device in devices_for(job.wanted_device, demand.model, queue, view):
        waiting = WaitingJob(job, demand, (device.settings.name,))
        for item in device.reservations:
            if (
                item.running
                and not item.preempt_requested
                and item.queue in view.queues
                and job.queue in yielded_to(view.queues[item.queue].settings, view)
            ):
                said += f". Job {item.job_id}: {weigh(item, waiting, device, view).why}"
    return said
