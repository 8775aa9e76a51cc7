"""Brings an hour's jobs to the card without gpuqueue: by calling Ollama at once, or by queues of which one is paused."""

from __future__ import annotations

import math
from collections import deque
from functools import partial

from gpuqueue.testing.virtual import Signal, VirtualOllama, VirtualTime
from tests.benchmarks.scheduling.hours import Arrival, Hour

PAUSE_S = 5.0  # after the last person's job
Job = tuple[str, Arrival]


class Direct:
    """Sends each job to Ollama when it comes."""

    def __init__(self, time: VirtualTime, ollama: VirtualOllama, hour: Hour) -> None:
        self.ended: set[str] = set()
        self._time, self._ollama = time, ollama

    def arrive(self, job: Job) -> None:
        self._time.spawn(partial(self.answer, job))

    def answer(self, job: Job) -> None:
        owner, arrival = job
        if self._ollama.answer(
            owner,
            arrival.model.name,
            prompt_tokens=arrival.prompt_tokens,
            output_tokens=arrival.output_tokens,
            stop=Signal(self._time),
        ):
            self.ended.add(owner)


class Pausing(Direct):
    """Runs one job at a time, and gives its memory back after each.

    From when a person's job comes until PAUSE_S after the last one's end no batch job is begun; one that runs is left alone.
    """

    def __init__(self, time: VirtualTime, ollama: VirtualOllama, hour: Hour) -> None:
        super().__init__(time, ollama, hour)
        self._paused = {name for name, settings in hour.queues.items() if settings.get("yields_to")}
        self._people: deque[Job] = deque()
        self._batch: deque[Job] = deque()
        self._may_begin_s = 0.0
        self._bell = Signal(time)
        time.spawn(self._work)

    def arrive(self, job: Job) -> None:
        (self._batch if job[1].queue in self._paused else self._people).append(job)
        self._bell.set()

    def _work(self) -> None:
        while True:
            self._bell.clear()
            left_s = self._may_begin_s - self._time.now_s
            if self._people:
                self._carry_out(self._people.popleft())
                self._may_begin_s = self._time.now_s + PAUSE_S
            elif self._batch and left_s <= 0:
                self._carry_out(self._batch.popleft())
            else:
                self._bell.wait(left_s if left_s > 0 else math.inf)

    def _carry_out(self, job: Job) -> None:
        self.answer(job)
        self._ollama.unload(job[1].model.name)
        self._ollama.wait_until_back()
