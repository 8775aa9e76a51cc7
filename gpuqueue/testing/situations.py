"""Lists the situations that every policy must handle: views in which things are present, missing or broken.

Decides nothing, and does not know the right answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from gpuqueue.config.loading import Config
from gpuqueue.contract.hookspecs import (
    AttemptFailedDetails,
    ChoosePreemptionsDetails,
    JobDemandDetails,
    OrderCandidatesDetails,
    PlaceJobDetails,
    QueueHoldDetails,
    QueueLimitsDetails,
    RetentionDetails,
    WaitingJob,
)
from gpuqueue.domain.answers import Demand, Hold, Placement
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.errors import AttemptTimedOut, BackendUnavailable, CallerFault, OutOfMemory, RunnerCrashed
from gpuqueue.domain.job import Job
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.domain.view import Backend, DeviceView, Pause, QueueView, View
from gpuqueue.testing.views import BATCH, GB, GPU0, MAIL, MODELS, NOW, OLLAMA, REALTIME, backend, device, job, lease, reservation
from gpuqueue.testing.views import view as made_up

__all__ = ["SITUATIONS", "questions"]

GPU1 = DeviceSettings("gpu1", budget_bytes=8 * GB, slots=2, max_models=2, index=1)
CARD: Mapping[str, Any] = {"name": "a card", "total_bytes": 8 * GB, "free_bytes": 6 * GB, "power_w": 20.0}
COOL: Mapping[str, Any] = {**CARD, "utilisation_percent": 0, "temperature_c": 41}
HOT: Mapping[str, Any] = {**CARD, "utilisation_percent": 100, "temperature_c": 97}


def _view(*queues: QueueView, devices: tuple[DeviceView, ...] = (device(GPU0, **COOL),), ollama: Backend | None = None) -> View:
    return made_up(*queues, devices=devices, ollama=ollama)


def _busy() -> tuple[QueueView, ...]:
    return (
        QueueView(REALTIME, running_count=1, waiting_count=3),
        QueueView(BATCH, waiting_count=100, noted_reasons=("yielding",)),
        QueueView(MAIL, running_count=8, waiting_count=100),
    )


def _with_residents(card: DeviceView, *models: str) -> DeviceView:
    return replace(card, residents=tuple(Resident(model, 5 * GB, 4 * GB) for model in models))


AWAY = backend(available=False, failures=3, since=NOW - timedelta(minutes=2), retry_at=NOW, error="nothing listens")

# Made again for each question, so that changes by a policy are noticed.
SITUATIONS: Mapping[str, Callable[[], View]] = {
    "nothing at all": lambda: View(now=NOW, queues={}, devices={}, backends={}, models={}),
    "queues but no device": lambda: replace(made_up(devices=()), backends={}, models={}),
    "a card that no worker has read": lambda: _view(devices=(DeviceView(GPU0),)),
    "a card that no driver here can read": lambda: _view(devices=(device(GPU0),)),
    "a card without a thermometer": lambda: _view(devices=(device(GPU0, **{**COOL, "temperature_c": None}),)),
    "a card that is lost": lambda: _view(devices=(device(GPU0, lost="it fell off the bus"),)),
    "a card that was read an hour ago": lambda: _view(
        devices=(DeviceView(GPU0, Reading(NOW - timedelta(hours=1), **HOT)),),
    ),
    "a cool card and nothing to do": lambda: _view(),
    "a hot card at work": lambda: _view(*_busy(), devices=(device(GPU0, reservation(1), **HOT),)),
    "memory that is being released": lambda: _view(*_busy(), devices=(device(GPU0, reservation(1, running=False), **COOL),)),
    "two cards with loaded models": lambda: _view(
        *_busy(),
        devices=(
            _with_residents(device(GPU0, reservation(1), **COOL), "gemma4:e4b"),
            _with_residents(device(GPU1, **HOT), "gemma4:e4b", "unknown:1b"),
        ),
    ),
    "an unavailable Ollama": lambda: _view(ollama=AWAY),
    "a queue that a person has paused": lambda: _view(
        QueueView(REALTIME, paused=Pause("ana", "", NOW, None)),
        QueueView(BATCH, paused=Pause("", "x", NOW, NOW)),
        QueueView(MAIL),
    ),
    "no worker": lambda: _view(QueueView(REALTIME, served=False), QueueView(BATCH, served=False), QueueView(MAIL, served=False)),
}


def questions(view: View) -> Mapping[str, list[Any]]:
    """Make the details of every decision that policies are asked for in this view: {hook: [details]}."""
    jobs = _jobs()
    queue_of = {item.queue: view.queues[item.queue].settings for item in jobs if item.queue in view.queues}
    asking = [item for item in jobs if item.queue in queue_of]
    hold = Hold("paused", "paused by ana")
    return {
        "queue_hold": [
            QueueHoldDetails(queue.settings, view, {other: holds for other in view.queues if other != name})
            for name, queue in view.queues.items()
            for holds in ((), (hold,))
        ],
        "queue_limits": [QueueLimitsDetails(queue.settings, view.now) for queue in view.queues.values()],
        "choose_preemptions": [
            ChoosePreemptionsDetails(
                tuple(WaitingJob(item, Demand(4 * GB, item.model), tuple(view.devices)) for item in some), view
            )
            for some in ((), tuple(asking))
        ],
        "job_demand": [JobDemandDetails(item, queue_of[item.queue], view) for item in asking],
        "place_job": [
            PlaceJobDetails(item, demand, queue_of[item.queue], view)
            for item in asking
            for demand in (Demand(0), Demand(4 * GB), Demand(4 * GB, "gemma4:e4b"), Demand(10**15, "huge:900b"))
        ],
        "order_candidates": [OrderCandidatesDetails(some, view) for some in ((), tuple(asking[:1]), tuple(asking))],
        "attempt_failed": [
            AttemptFailedDetails(
                lease(queue=queue.name, attempt=attempt, placement=placement),
                queue,
                error,
                view.now,
                OLLAMA if placement else None,
            )
            for queue in queue_of.values()
            for attempt in (1, 3)
            for placement in (None, Placement("gpu0", 4 * GB))
            for error in _errors()
        ],
        "retention": [
            RetentionDetails(configured, view.now) for configured in ({}, Config.default("made-up.db", environ={}).retention)
        ],
    }


def _jobs() -> list[Job]:
    model = next(iter(MODELS))
    return [
        job(1),
        job(2, queue="ai-realtime", priority=5, arguments={"model": model, "prompt": "x"}, model=model, demand_bytes=4 * GB),
        job(3, queue="ai-batch", arguments={"model": "never-heard-of"}, attempt=2),
        job(4, queue="mail", task="app.send", arguments={}),
        job(5, queue="ai-batch", task="app.train", arguments={}, scheduled_at=NOW - timedelta(hours=1)),
    ]


def _errors() -> list[Exception]:
    return [
        ValueError("the task's own"),
        BackendUnavailable("nothing listens", backend="ollama"),
        OutOfMemory("did not fit"),
        RunnerCrashed("gone"),
        CallerFault("no such model"),
        AttemptTimedOut("too long"),
    ]
