"""Owns deciding: the view and the plugins' answers become holds, demands, placements and reasons; changes nothing.

The same evaluation serves a worker that claims and a person who asks why; only the claim itself is missing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gpuqueue.domain import (
    Demand,
    Explanation,
    Hold,
    Job,
    Placement,
    QueueSettings,
    State,
    View,
    Wait,
)
from gpuqueue.errors import ConfigurationError
from gpuqueue.hookspecs import JobDemandDetails, OrderCandidatesDetails, PlaceJobDetails, QueueHoldDetails
from gpuqueue.plugin_manager import PluginFailed, Plugins
from gpuqueue.view import serves


def decide_holds(view: View, plugins: Plugins, failed: Mapping[str, Hold] | None = None) -> dict[str, tuple[Hold, ...]]:
    """Return every queue's holds; a queue comes after those that it yields to. A plugin that fails holds the queue.

    `failed` has the holds of queues for whose jobs a plugin failed elsewhere.
    """
    holds: dict[str, tuple[Hold, ...]] = {}
    for queue in yielding_order({name: item.settings for name, item in view.queues.items()}):
        found = []
        paused = view.queues[queue.name].paused
        if paused is not None:
            found.append(Hold("paused", f"paused by {paused.by}" + (f": {paused.reason}" if paused.reason else ""), paused.until))
        if failed and queue.name in failed:
            found.append(failed[queue.name])
        try:
            for plugin, hold in plugins.each("queue_hold", QueueHoldDetails(queue, view, dict(holds))):
                if not isinstance(hold, Hold):
                    raise PluginFailed(plugin, "queue_hold", TypeError(f"it answered {hold!r}, which is no Hold"))
                found.append(replace(hold, plugin=plugin))
        except PluginFailed as error:
            found.append(Hold("plugin_failed", str(error), plugin=error.plugin))
        holds[queue.name] = tuple(found)
    return holds


def known_holds(view: View, plugins: Plugins) -> dict[str, tuple[Hold, ...]]:
    """Return every queue's holds, with those of plugins that only workers have."""
    here = {name for name, _ in plugins.names()}
    holds = decide_holds(view, plugins)
    for worker in view.workers:
        for queue, published in worker.holds.items():
            if queue in holds and serves(worker, queue):
                holds[queue] += tuple(hold for hold in published if hold.plugin not in here and hold not in holds[queue])
    return holds


def yielding_order(queues: Mapping[str, QueueSettings]) -> list[QueueSettings]:
    """Order queues so that each comes after those it yields to. Raises: ConfigurationError for a cycle."""
    ordered: dict[str, QueueSettings] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ConfigurationError(f"queues yield to each other in a circle: {' → '.join((*path[path.index(name) :], name))}")
        if name in queues and name not in ordered:
            for other in queues[name].yields_to:
                visit(other, (*path, name))
            ordered[name] = queues[name]

    for name in queues:
        visit(name, ())
    return list(ordered.values())


def decide_demand(job: Job, view: View, plugins: Plugins) -> Demand:
    """Return what the job needs of a device. Raises: PluginFailed, also when no plugin knows."""
    demand = plugins.first("job_demand", JobDemandDetails(job, view.queues[job.queue].settings, view))
    if not isinstance(demand, Demand):
        raise PluginFailed("job_demand", "job_demand", TypeError(f"no plugin knows what job {job.id} needs of a device"))
    return demand


def order(candidates: Sequence[Job], view: View, plugins: Plugins) -> list[Job]:
    """Return the candidates in the order in which they are tried. Raises: PluginFailed."""
    ordered = plugins.first("order_candidates", OrderCandidatesDetails(tuple(candidates), view))
    if ordered is None:
        return list(candidates)
    known = {job.id: job for job in candidates}
    try:
        return [known[job.id] for job in ordered]
    except (TypeError, AttributeError, KeyError):
        error = TypeError(f"the answer must have the candidates in another order, not {ordered!r}")
        raise PluginFailed("order_candidates", "order_candidates", error) from None


def place(job: Job, view: View, plugins: Plugins) -> Placement | Wait:
    """Return the job's device, or why it waits; a plugin that fails makes it wait."""
    queue = view.queues[job.queue].settings
    demand = Demand(job.demand_bytes, job.model)
    try:
        answer = plugins.first("place_job", PlaceJobDetails(job, demand, queue, view))
    except PluginFailed as error:
        return Wait("plugin_failed", str(error))
    if answer is None:
        return Wait("no_device", "no plugin places jobs on a device")
    if isinstance(answer, Wait) or (isinstance(answer, Placement) and answer.device in view.devices):
        return answer
    return Wait("plugin_failed", f"a plugin answered place_job with {answer!r}; devices: {', '.join(view.devices) or 'none'}")


def explain(
    job: Job, view: View, plugins: Plugins, *, ahead_count: int, running_ids: Sequence[int], worker_command: str
) -> Explanation:
    """Say why a job is where it is: every reason, with numbers and times.

    `ahead_count` are the available jobs before it in its queue, `running_ids` some running jobs of its queue,
    `worker_command` the command that starts a worker for it.
    """
    if job.state is State.RUNNING:
        where = f" on {job.device}" if job.device else ""
        stopping = ", and was asked to stop" if job.cancel_requested else ""
        return Explanation(job.id, job.state, f"running{where}, attempt {job.attempt} of {job.max_attempts}{stopping}", ())
    if job.state is State.COMPLETED:
        return Explanation(job.id, job.state, f"completed in attempt {job.attempt}", ())
    if job.state in (State.CANCELLED, State.DISCARDED):
        why = f": {job.error.message} ({job.error.code})" if job.error else ""
        advice = f"gpuqueue retry {job.id}"
        if job.error is not None and job.error.code == "caller_fault":  # the same request would fail again
            advice = "enqueue it anew with what the message asks for"
        return Explanation(job.id, job.state, f"{job.state}{why}", (), advice)
    reasons, advice = _waiting_reasons(job, view, plugins, ahead_count, running_ids, worker_command)
    summary = "waits" if reasons else "would start now; a worker picks it up in a moment"
    return Explanation(job.id, job.state, summary, tuple(reasons), advice)


def _waiting_reasons(
    job: Job, view: View, plugins: Plugins, ahead_count: int, running_ids: Sequence[int], worker_command: str
) -> tuple[list[Hold], str]:
    reasons: list[Hold] = []
    advice = ""
    queue = view.queues[job.queue]
    if job.state is State.SCHEDULED:
        reasons.append(Hold("scheduled", "its time has not come", job.scheduled_at))
    if job.state is State.RETRYABLE:
        error = f" after: {job.error.message}" if job.error else ""
        waiting_for = f", or when {job.waiting_for} is back" if job.waiting_for else ""
        reasons.append(Hold("retryable", f"its next attempt is due{waiting_for}{error}", job.scheduled_at))
    if not queue.served:
        reasons.append(Hold("no_worker", f"no worker serves queue {job.queue!r}"))
        advice = f"start a worker: {worker_command}"
    queue_holds = known_holds(view, plugins)[job.queue]
    reasons += queue_holds
    if any(hold.reason == "paused" for hold in queue_holds):
        advice = advice or f"gpuqueue resume {job.queue}"
    limit = queue.settings.concurrency
    if limit is not None and queue.running_count >= limit:
        jobs = ", ".join(f"job {job_id}" for job_id in running_ids)
        reasons.append(Hold("concurrency", f"{queue.running_count} of {limit} jobs of {job.queue} run ({jobs})"))
    if job.device is not None:
        reasons.append(Hold("clean_up", f"the memory of its last attempt on {job.device} is being given back"))
    elif queue.settings.gpu and job.state is State.AVAILABLE:
        reasons += _device_reasons(job, view, plugins)
    if ahead_count and job.state is State.AVAILABLE:
        reasons.append(Hold("behind", f"{'at least ' if ahead_count >= 100 else ''}{ahead_count} jobs of {job.queue} come first"))
    return reasons, advice


def _device_reasons(job: Job, view: View, plugins: Plugins) -> list[Hold]:
    try:
        demand = decide_demand(job, view, plugins) if job.demand_bytes == 0 else Demand(job.demand_bytes, job.model)
    except PluginFailed as error:
        return [Hold("plugin_failed", str(error))]
    answer = place(replace(job, demand_bytes=demand.vram_bytes, model=demand.model), view, plugins)
    return [Hold(answer.reason, answer.detail, answer.until)] if isinstance(answer, Wait) else []
