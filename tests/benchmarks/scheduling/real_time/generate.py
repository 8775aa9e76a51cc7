"""Owns how the traces were made: `python -m tests.benchmarks.scheduling.real_time.generate` writes the same files again."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.benchmarks.scheduling.real_time.traces import BATCH, FOLDER, MODELS, REALTIME, Arrival

GEMMA, QWEN = "gemma4:e4b", "qwen3:4b"
LENGTH_S = 1800.0
LOTS = 3  # in which batch work comes
LOAD = 1.02  # of the card, so that it is never out of work before the end


def realtime(drawn: random.Random, at_s: float) -> Arrival:
    return Arrival(round(at_s, 1), REALTIME, GEMMA, drawn.randint(100, 800), drawn.randint(150, 400))


def burst(drawn: random.Random, at_s: float, count: int) -> list[Arrival]:
    """Some requests of one person, who does not wait for one answer to ask for the next."""
    found = []
    for _ in range(count):
        found.append(realtime(drawn, at_s))
        at_s += drawn.uniform(1.0, 6.0)
    return found


def batch(drawn: random.Random, work_s: float, models: list[str], shortest_s: float, longest_s: float) -> list[Arrival]:
    """Jobs of so much work in all, for each document one with each model, in lots of which the first is the largest."""
    jobs: list[Arrival] = []
    while sum(job.work_s for job in jobs) < work_s:
        model = models[len(jobs) % len(models)]
        tokens = int(drawn.uniform(shortest_s, longest_s) * MODELS[model].tokens_per_s)
        jobs.append(Arrival(0.0, BATCH, model, drawn.randint(300, 1500), tokens))
    size = len(jobs) / LOTS
    lots = [max(0, int((place - 0.15 * size) / size)) for place in range(len(jobs))]
    return [
        Arrival(lot * LENGTH_S / LOTS, job.queue, job.model, job.prompt_tokens, job.output_tokens)
        for lot, job in zip(lots, jobs, strict=True)
    ]


def one_model() -> dict[str, object]:
    drawn = random.Random(2060)
    people = [realtime(drawn, 60 + 170 * number + drawn.uniform(0, 110)) for number in range(4)]
    for number in range(5):
        people += burst(drawn, 780 + 200 * number + drawn.uniform(0, 100), drawn.randint(3, 6))
    jobs = batch(drawn, LOAD * LENGTH_S - sum(item.work_s for item in people), [GEMMA], 6.0, 14.0)
    return trace(
        "One model. A person asks now and then, later several times in a row, over a batch backlog.", 120.0, people, jobs
    )


def two_models() -> dict[str, object]:
    drawn = random.Random(4096)
    people: list[Arrival] = []
    for number in range(5):
        people += burst(drawn, 120 + 340 * number + drawn.uniform(0, 120), drawn.randint(2, 5))
    jobs = batch(drawn, LOAD * LENGTH_S - sum(item.work_s for item in people), [GEMMA, QWEN], 20.0, 55.0)
    return trace(
        "Two models that do not fit the budget together. A person uses one; each document of the batch backlog needs both.",
        120.0,
        people,
        jobs,
    )


def trace(about: str, affinity_s: float, *arrivals: list[Arrival]) -> dict[str, object]:
    ordered = sorted((arrival for part in arrivals for arrival in part), key=lambda arrival: arrival.at_s)
    return {
        "about": about,
        "length_s": LENGTH_S,
        "affinity_s": affinity_s,
        "columns": ["at_s", "queue", "model", "prompt_tokens", "output_tokens"],
        "arrivals": [[item.at_s, item.queue, item.model, item.prompt_tokens, item.output_tokens] for item in ordered],
    }


def text(made: dict[str, object]) -> str:
    """Word a trace as JSON, one arrival a line."""
    listed = made["arrivals"]
    assert isinstance(listed, list)
    head = json.dumps({**made, "arrivals": []}, indent=1).removesuffix("[]\n}")
    lines = ",\n".join(f"  {json.dumps(item)}" for item in listed)
    return f"{head}[\n{lines}\n ]\n}}\n"


TRACES = {"one-model": one_model, "two-models": two_models}


def main(folder: Path = FOLDER) -> None:
    for name, make in TRACES.items():
        (folder / f"{name}.json").write_text(text(make()), encoding="utf-8")


if __name__ == "__main__":
    main()
