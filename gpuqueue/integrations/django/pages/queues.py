"""Shows queues: their jobs by state, what holds each and until when; pauses nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpuqueue.decisions.evaluation import known_holds
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.errors import UnknownQueue
from gpuqueue.domain.job import State
from gpuqueue.domain.settings import QueueSettings, Rate, WindowRule
from gpuqueue.domain.units import DURATION_UNITS
from gpuqueue.domain.view import QueueView, View
from gpuqueue.integrations.django.pages.sources import keys_of
from gpuqueue.integrations.django.pages.wording import NOTHING, Moment, held

if TYPE_CHECKING:
    from gpuqueue.integrations.django.queues import DjangoQueue

__all__ = ["queue_list", "queue_page"]


def queue_list(gq: DjangoQueue) -> dict[str, Any]:
    """Show every queue of a file."""
    view, counts = gq.view(), gq.counts()
    holds = known_holds(view, gq.plugins)
    ends = gq.expected_ends()
    states = [state for state in State if any(counts.get(name, {}).get(state) for name in view.queues)]
    return {
        "states": [str(state) for state in states],
        "queues": [_row(gq, queue, view, counts.get(name, {}), holds, ends, states) for name, queue in view.queues.items()],
        "has_workers": bool(view.workers),
        "worker_command": gq.worker_command(""),
    }


def queue_page(gq: DjangoQueue, name: str) -> dict[str, Any]:
    """Show one queue. Raises: UnknownQueue."""
    view, counts = gq.view(), gq.counts()
    if name not in view.queues:
        raise UnknownQueue(name, view.queues)
    queue = view.queues[name]
    row = _row(gq, queue, view, counts.get(name, {}), known_holds(view, gq.plugins), gq.expected_ends(), list(State))
    configured = _settings(gq.queue_settings(name))
    tighter = [f"{key} {value}" for key, value in _settings(queue.settings) if (key, value) not in configured]
    return {"queue": row, "settings": configured, "tighter": ", ".join(tighter), "limited_by": queue.limited_by}


def _row(
    gq: DjangoQueue,
    queue: QueueView,
    view: View,
    counts: Mapping[str, int],
    holds: Mapping[str, Sequence[Hold]],
    ends: Mapping[str, datetime],
    states: Sequence[State],
) -> dict[str, Any]:
    name, paused = queue.settings.name, queue.paused
    waiting_count = counts.get(State.AVAILABLE, 0)
    return {
        "name": name,
        "key": keys_of(gq.alias)(name),
        "alias": gq.alias,
        "gpu": queue.settings.gpu,
        "counts": [(str(state), counts.get(state, 0)) for state in states],
        "holds": [held(hold, now=view.now) for hold in holds.get(name, ())],
        "pause": paused,
        "paused_at": None if paused is None else Moment(paused.at, view.now),
        "unserved_count": 0 if queue.served else waiting_count,
        "served": queue.served,
        "worker_command": gq.worker_command(name),
        "expected_end": Moment(ends[name], view.now) if name in ends else None,
    }


def _settings(settings: QueueSettings) -> list[tuple[str, str]]:
    """Show the configuration, with keys and values as in `gpuqueue.toml`."""
    shown = []
    for field in fields(settings):
        key, value = field.name.removesuffix("_s"), getattr(settings, field.name)
        if field.name != "name":
            shown.append((key, NOTHING if value is None or value in ("", ()) else _written(value, is_duration=key != field.name)))
    return shown


def _written(value: Any, *, is_duration: bool = False) -> str:
    """Write a value as TOML."""
    if is_duration:
        count, unit = _in_one_unit(value)
        return f'"{count}{unit}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, WindowRule):
        parts = {"at": value.at, "concurrency": value.concurrency, "rate": value.rate}
        return f"{{ {', '.join(f'{key} = {_written(part)}' for key, part in parts.items() if part is not None)} }}"
    if isinstance(value, Rate):
        count, unit = _in_one_unit(value.per_s)
        return f'"{value.count}/{count if count > 1 else ""}{unit}"'
    return json.dumps(value, ensure_ascii=False)


def _in_one_unit(seconds: float) -> tuple[int, str]:
    """Express a duration exactly, in the largest unit that divides it."""
    milliseconds = round(seconds * 1000)
    if not milliseconds:
        return 0, "s"
    return next((milliseconds // size, unit) for unit, size in DURATION_UNITS.items() if milliseconds % size == 0)
