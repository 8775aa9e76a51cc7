"""Counts events into counters and histograms, which start at zero with the service."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from gpuqueue import GPUQueue, StoreError, UsageError
from gpuqueue.plugins import Event, Record, State
from gpuqueue_prometheus import metrics
from gpuqueue_prometheus.metrics import Distribution, Sample, Spec

FOLLOWER = "prometheus"
BATCH = 500
BATCHES_AT_ONCE = 10
RESULTS_AT_ONCE = 50  # an embedding may be large
MOST_NAMES = 100  # of models, and of tasks: callers can use any name
OTHER = "other"
OUTCOMES = (State.COMPLETED, State.CANCELLED, State.DISCARDED)
MODEL_VERBS = ("generate", "chat", "embed")
TOKENS = {"prompt": "prompt_tokens", "output": "output_tokens"}
logger = logging.getLogger("gpuqueue.prometheus")


class Tally:
    """The counts, and how each event changes them."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Spec, tuple[str, ...]], float] = {}
        self._distributions: dict[tuple[Spec, tuple[str, ...]], Distribution] = {}
        self._names: dict[str, set[str]] = {}

    def take(self, event: Event, answer: Mapping[str, Any] | None = None) -> None:
        """Count one event; `answer` is the result of a completed model job."""
        queue, data = event.queue or "", event.data
        match event.name:
            case "job_enqueued":
                self._add(metrics.ENQUEUED, queue)
            case "attempt_started":
                self._observe(metrics.WAIT, data.get("waited_s"), queue)
            case "attempt_finished" if data.get("preempted"):
                self._add(metrics.PREEMPTIONS, queue)
            case "job_finished":
                self._add(metrics.FINISHED, queue, data["state"])
                if data["state"] == State.COMPLETED:
                    self._observe(metrics.RUN, data.get("ran_s"), queue, self._bounded("task", data.get("task")))
            case "lease_rescued":
                self._add(metrics.RESCUES, queue)
            case "model_loading":
                self._add(metrics.MODEL_LOADS, data["device"], self._bounded("model", data["model"]))
        if answer is not None:
            for kind, figure in TOKENS.items():
                if isinstance(answer.get(figure), int):
                    self._add(metrics.TOKENS, self._bounded("model", answer.get("model")), kind, by=answer[figure])

    def know(self, queues: Iterable[str]) -> None:
        """Start the series of these queues at 0, so that the first count shows as an increase."""
        for queue in queues:
            for spec in (metrics.ENQUEUED, metrics.PREEMPTIONS, metrics.RESCUES):
                self._add(spec, queue, by=0)
            for outcome in OUTCOMES:
                self._add(metrics.FINISHED, queue, str(outcome), by=0)
            self._observe(metrics.WAIT, None, queue)

    def samples(self) -> list[Sample]:
        return [Sample(spec, labels, value) for (spec, labels), value in self._counts.items()]

    def distributions(self) -> list[Distribution]:
        return [distribution.copy() for distribution in self._distributions.values()]

    def _add(self, spec: Spec, *labels: str, by: float = 1) -> None:
        self._counts[spec, labels] = self._counts.get((spec, labels), 0) + by

    def _observe(self, spec: Spec, value: float | None, *labels: str) -> None:
        found = self._distributions.setdefault((spec, labels), Distribution(spec, labels))
        if value is not None:
            found.observe(value)

    def _bounded(self, label: str, value: Any) -> str:
        known = self._names.setdefault(label, set())
        name = str(value or "")
        if name not in known and len(known) >= MOST_NAMES:
            return OTHER
        known.add(name)
        return name


class Counting:
    """Keeps a tally of the queue's events, with its own cursor; safe to use from several threads."""

    def __init__(self, gq: GPUQueue) -> None:
        self._gq = gq
        self._tally = Tally()
        self._lock = threading.Lock()
        self._follower = gq.follow(FOLLOWER)
        self._counted_id = 0  # the last event that this process counted, in case the cursor cannot be written
        self._verbs = {
            f"{backend}.{verb}"
            for backend in ("ollama", *(settings.name for settings in gq.agreed_settings().backends))
            for verb in MODEL_VERBS
        }

    def catch_up(self) -> bool:
        """Count new events, as many as one call takes; returns whether more are left. Raises: StoreError."""
        with self._lock:
            return self._catch_up()

    def counted(self, queues: Iterable[str]) -> tuple[list[Sample], list[Distribution]]:
        """Catch up and return all counts so far, with zeros for these queues. Raises: StoreError."""
        with self._lock:
            self._catch_up()
            self._tally.know(queues)
            return self._tally.samples(), self._tally.distributions()

    def _catch_up(self) -> bool:
        for _ in range(BATCHES_AT_ONCE):
            try:
                events = self._follower.read(limit=BATCH)
            except UsageError:  # the follower was forgotten, after 30 days without a read or by a person
                self._follower = self._gq.follow(FOLLOWER)
                return False
            if not events:
                return False
            new = [event for event in events if event.id > self._counted_id]
            answers = self._answers(event for event in new if self._is_answer(event))
            for event in new:
                self._tally.take(event, answers.get(event.id))
            self._counted_id = events[-1].id
            try:
                self._follower.advance(self._counted_id)
            except StoreError as error:  # they are read again, but not counted again
                logger.warning("could not save the position in the events, trying again: %s", error)
                return False
        return True

    def _is_answer(self, event: Event) -> bool:
        return event.name == "job_finished" and event.data["state"] == State.COMPLETED and event.data.get("task") in self._verbs

    def _answers(self, events: Iterable[Event]) -> dict[int, Mapping[str, Any]]:
        """Read the results of model jobs: {event id: result}, without those already deleted."""
        found: dict[int, Mapping[str, Any]] = {}
        rest = iter(events)
        while part := list(islice(rest, RESULTS_AT_ONCE)):
            with self._gq.read() as reader:
                records = reader.records(event.job_id for event in part if event.job_id is not None)
            for event in part:
                record = records.get(event.job_id or 0)
                if record is not None and (answer := _result(record)) is not None:
                    found[event.id] = answer
        return found


def _result(record: Record) -> Mapping[str, Any] | None:
    answer = json.loads(record.result) if record.result else None
    return answer if isinstance(answer, dict) else None
