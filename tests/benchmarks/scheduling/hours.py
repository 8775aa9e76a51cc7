"""The hours that are played: who comes when and asks for what, drawn by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gpuqueue.testing.virtual import VirtualModel

HOUR_S = 3600.0
PEOPLE, BATCH, EMBED, NIGHT = "people", "batch", "embed", "night"
PAUSES = {BATCH: (9, 18), NIGHT: (6, 22)}  # from which hour of the day to which, where an hour has them
GEMMA = VirtualModel("gemma4:e4b", 4_500_000_000, tokens_per_s=60.0)
QWEN = VirtualModel("qwen3:4b", 3_000_000_000, tokens_per_s=70.0)
LLAMA = VirtualModel("llama3.2:3b", 2_500_000_000, tokens_per_s=80.0)
NOMIC = VirtualModel("nomic-embed-text", 500_000_000, tokens_per_s=100.0)


class Arrival(NamedTuple):
    """One job: when it comes, to which queue, and what it asks of which model; `counts` if its wait is looked at."""

    at_s: float
    queue: str
    model: VirtualModel
    prompt_tokens: int
    output_tokens: int
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Hour:
    """What comes in an hour; `queues` has what its queues need beside a GPU and concurrency 1, the others what those do."""

    name: str
    about: str
    draw: Callable[[random.Random], Iterator[Arrival]]
    queues: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {PEOPLE: {}, BATCH: {"yields_to": [PEOPLE]}})
    gpu: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    length_s: float = HOUR_S

    def arrivals(self, seed: int) -> list[Arrival]:
        return sorted(self.draw(random.Random(seed)), key=lambda arrival: arrival.at_s)


def people(
    drawn: random.Random,
    model: VirtualModel,
    *,
    every_s: tuple[float, float],
    output_s: tuple[float, float] = (2.5, 7.0),
    prompt: tuple[int, int] = (100, 800),
) -> Iterator[Arrival]:
    """Draw a person who asks again and again, with prompts of so many tokens."""
    at_s = drawn.uniform(*every_s)
    while at_s < HOUR_S:
        yield Arrival(at_s, PEOPLE, model, drawn.randint(*prompt), tokens(drawn, model, output_s))
        at_s += drawn.uniform(*every_s)


def backlog(
    drawn: random.Random,
    *models: VirtualModel,
    output_s: tuple[float, float] = (30.0, 120.0),
    work_s: float = HOUR_S,
    prompt: tuple[int, int] = (300, 1500),
) -> Iterator[Arrival]:
    """Draw batch jobs that are all there from the beginning, in turn with each model, for so much work."""
    number = 0
    while work_s > 0:
        model = models[number % len(models)]
        job = Arrival(0.0, BATCH, model, drawn.randint(*prompt), tokens(drawn, model, output_s))
        yield job
        work_s -= job.output_tokens / model.tokens_per_s
        number += 1


def tokens(drawn: random.Random, model: VirtualModel, output_s: tuple[float, float]) -> int:
    return max(1, round(drawn.uniform(*output_s) * model.tokens_per_s))


def _now_and_then(*models: VirtualModel, work_s: float = HOUR_S) -> Callable[[random.Random], Iterator[Arrival]]:
    def draw(drawn: random.Random) -> Iterator[Arrival]:
        yield from backlog(drawn, *models, work_s=work_s)
        yield from people(drawn, models[0], every_s=(20.0, 60.0))

    return draw


def _short_and_often(model: VirtualModel) -> Callable[[random.Random], Iterator[Arrival]]:
    def draw(drawn: random.Random) -> Iterator[Arrival]:
        yield from backlog(drawn, GEMMA, output_s=(60.0, 60.0), prompt=(100, 300))
        yield from people(drawn, model, every_s=(4.0, 4.0), output_s=(0.35, 0.4), prompt=(20, 60))

    return draw


def _one_long_job(model: VirtualModel) -> Callable[[random.Random], Iterator[Arrival]]:
    def draw(drawn: random.Random) -> Iterator[Arrival]:
        yield Arrival(0.0, BATCH, GEMMA, drawn.randint(300, 1500), tokens(drawn, GEMMA, (600.0, 600.0)))
        yield from people(drawn, model, every_s=(90.0, 90.0))

    return draw


def _embeddings(drawn: random.Random) -> Iterator[Arrival]:
    yield from backlog(drawn, GEMMA)
    for number in range(int(HOUR_S / 3.0)):
        yield Arrival(3.0 * number + drawn.uniform(0.0, 1.0), EMBED, NOMIC, drawn.randint(100, 500), 0)


def _two_persons(drawn: random.Random) -> Iterator[Arrival]:
    yield from backlog(drawn, GEMMA)
    for at_s in (600.0, 1800.0, 3000.0):
        for _ in range(20):
            yield Arrival(at_s, PEOPLE, GEMMA, drawn.randint(100, 800), tokens(drawn, GEMMA, (2.5, 7.0)), counts=False)
    yield from people(drawn, GEMMA, every_s=(20.0, 60.0))


def _batch_alone(drawn: random.Random) -> Iterator[Arrival]:
    yield from backlog(drawn, GEMMA)


def _one_each_5_s(drawn: random.Random) -> Iterator[Arrival]:
    for number in range(int(HOUR_S / 5.0)):
        yield Arrival(5.0 * number, BATCH, GEMMA, drawn.randint(300, 1500), tokens(drawn, GEMMA, (2.0, 6.0)))


def _batch_of_two_models(drawn: random.Random) -> Iterator[Arrival]:
    yield from backlog(drawn, GEMMA, QWEN)


def _days(drawn: random.Random) -> Iterator[Arrival]:
    """Draw two days and nights from 18:00 on: people by day, batch work at all times and much of it before its pause."""
    for hour in range(48):
        at_s = HOUR_S * hour
        clock = (18 + hour) % 24
        if 7 <= clock < 21:
            for _ in range(drawn.randint(3, 6)):
                yield Arrival(
                    at_s + drawn.uniform(0, HOUR_S), PEOPLE, GEMMA, drawn.randint(100, 800), tokens(drawn, GEMMA, (2.5, 7))
                )
        for queue, model in ((BATCH, GEMMA), (BATCH, QWEN), (NIGHT, QWEN)):
            came_s = at_s + drawn.uniform(0, HOUR_S)
            yield Arrival(came_s, queue, model, drawn.randint(300, 1500), tokens(drawn, model, (30.0, 120.0)))
        for pause in (PAUSES[BATCH], PAUSES[NIGHT]):
            if clock == pause[0] - 1:
                for _ in range(6):
                    yield Arrival(at_s + HOUR_S - 200.0, BATCH, GEMMA, 800, tokens(drawn, GEMMA, (60.0, 120.0)))
                    yield Arrival(at_s + HOUR_S - 200.0, NIGHT, QWEN, 800, tokens(drawn, QWEN, (60.0, 120.0)))


def _paused(queue: str) -> dict[str, Any]:
    began, ends = PAUSES[queue]
    return {"pause": [f"{began:02}:00-{ends:02}:00"], "timezone": "UTC", "yields_to": [PEOPLE]}


HOURS = {
    hour.name: hour
    for hour in (
        Hour("S1", "one model, batch jobs of 30 to 120 s, a person every 20 to 60 s", _now_and_then(GEMMA)),
        Hour("S1h", "the same, the backlog ends halfway", _now_and_then(GEMMA, work_s=HOUR_S / 3)),
        Hour("S2", "the same with two models in turn, the person with one", _now_and_then(GEMMA, QWEN)),
        Hour("S2b", "its batch work alone", _batch_of_two_models, {BATCH: {}}),
        Hour("S3", "the same with three models in turn", _now_and_then(GEMMA, QWEN, LLAMA)),
        Hour(
            "S4",
            "embeddings every 3 s that batch yields to, beside generations",
            _embeddings,
            {EMBED: {}, BATCH: {"yields_to": [EMBED]}},
        ),
        Hour(
            "S4w",
            "the same, both models loaded and kept",
            _embeddings,
            {EMBED: {}, BATCH: {"yields_to": [EMBED]}},
            {"max_models": 2, "keep_warm": "1h"},
        ),
        Hour("S6", "a person's 0.4 s job every 4 s beside 60 s batch jobs, same model", _short_and_often(GEMMA)),
        Hour("S6o", "the same, the person with another model", _short_and_often(QWEN)),
        Hour("S7", "a person every 90 s beside one 10-minute job, same model", _one_long_job(GEMMA)),
        Hour("S7o", "the same, the person with another model", _one_long_job(QWEN)),
        Hour("S8", "two persons, one enqueues 20 at once; the other one's waits", _two_persons),
        Hour("S9", "batch alone, queued together", _batch_alone, {BATCH: {}}),
        Hour("S9e", "batch alone, one each 5 s", _one_each_5_s, {BATCH: {}}),
        Hour(
            "S10",
            "two days, batch paused by day, other work only at night, people by day",
            _days,
            {PEOPLE: {}, BATCH: _paused(BATCH), NIGHT: _paused(NIGHT)},
            length_s=48 * HOUR_S,
        ),
    )
}
