"""Which models stay loaded for which jobs, played by the real dispatcher, policies and store on virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import Config, JobHandle, State
from gpuqueue.domain.estimates import worth_keeping_s
from gpuqueue.testing.virtual import Interval, VirtualModel, VirtualOllama, VirtualQueue, VirtualTime, VirtualWorker
from gpuqueue.testing.virtual.time import START

GEMMA = VirtualModel("gemma4:e4b", 4_400_000_000, tokens_per_s=60.0)
QWEN = VirtualModel("qwen3:4b", 3_000_000_000, tokens_per_s=70.0)
NOMIC = VirtualModel("nomic-embed-text", 500_000_000, tokens_per_s=100.0)
MODELS = (GEMMA, QWEN, NOMIC)
BUDGET_BYTES = 5_000_000_000
HOUR_S = 3600.0


class Card:
    """A card with two queues; `batch` yields to `people`."""

    def __init__(
        self, folder: Path, people: dict[str, Any] | None = None, batch: dict[str, Any] | None = None, **gpu: Any
    ) -> None:
        queue = {"gpu": True, "concurrency": 1}
        config = Config.load(
            None,
            environ={},
            database=str(folder / "q.db"),
            gpu=[{"budget": BUDGET_BYTES, "margin": "3GB", **gpu}],
            ollama={"url": "http://127.0.0.1:9"},
            models={model.name: {"vram": model.size_bytes} for model in MODELS},
            queues={
                "people": {**queue, **(people or {})},
                "batch": {**queue, **({"yields_to": ["people"]} if batch is None else batch)},
            },
        )
        self.time = VirtualTime()
        self.ollama = VirtualOllama(self.time, MODELS)
        self.gq = VirtualQueue(config, self.time)
        self.worker = VirtualWorker(self.gq, self.time, self.ollama)
        self.jobs: list[JobHandle] = []

    def ask(self, queue: str, model: VirtualModel = GEMMA, output_s: float = 2.0) -> None:
        if model is NOMIC:
            job = self.gq.ollama.embed(model.name, input="x" * 400, queue=queue)
        else:
            said = [{"role": "user", "content": "x" * 400}]
            options = {"num_predict": round(output_s * model.tokens_per_s)}
            job = self.gq.ollama.chat(model.name, messages=said, queue=queue, think=False, options=options)
        self.jobs.append(job)

    def at(self, at_s: float, queue: str, model: VirtualModel = GEMMA, output_s: float = 2.0) -> None:
        self.time.call_at(at_s, lambda: self.ask(queue, model, output_s))

    def end(self) -> None:
        """Play an hour; every job ends, and no two models ever take more than the budget."""
        self.time.run(HOUR_S)
        assert {job.refresh().state for job in self.jobs} == {State.COMPLETED}
        assert not self.gq.view().devices["gpu0"].reservations
        assert (self.ollama.overlap_count, self.ollama.peak_bytes <= BUDGET_BYTES) == (0, True)

    def uses(self, kind: str, model: VirtualModel) -> list[Interval]:
        return [item for item in self.ollama.intervals if (item.kind, item.model) == (kind, model.name)]


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Callable[..., Card]]:
    made: list[Card] = []

    def make(**settings: Any) -> Card:
        made.append(Card(tmp_path, **settings))
        return made[-1]

    yield make
    for item in made:
        item.time.close()
        item.gq.close()


# keep_warm = "auto"


@pytest.mark.parametrize(("keep_warm", "most", "least"), [("0s", 30, 30), ("auto", 4, 1)])
def test_where_jobs_come_one_after_the_other_a_model_is_loaded_a_few_times_and_then_kept(
    card: Callable[..., Card], keep_warm: str, most: int, least: int
) -> None:
    found = card(keep_warm=keep_warm)
    for number in range(30):
        found.at(10.0 * number, "people")
    found.end()
    assert least <= len(found.uses("load", GEMMA)) <= most


def test_a_kept_model_is_unloaded_when_its_time_is_over_and_no_job_has_come(card: Callable[..., Card]) -> None:
    found = card(keep_warm="auto")
    for number in range(30):
        found.at(10.0 * number, "people")
    found.end()
    stay_s = worth_keeping_s(found.gq.view().estimates, GEMMA.name, None)
    last, released = found.uses("decode", GEMMA)[-1], found.uses("release", GEMMA)[-1]
    assert released.start_s - last.end_s == pytest.approx(stay_s, abs=0.1)
    assert found.ollama.residents() == ()


def test_jobs_that_come_far_less_often_than_a_load_takes_have_the_memory_given_back_at_once(card: Callable[..., Card]) -> None:
    found = card(keep_warm="auto")
    for number in range(10):
        found.at(300.0 * number, "people")
    found.end()
    assert len(found.uses("load", GEMMA)) == 10
    ends, releases = found.uses("decode", GEMMA), found.uses("release", GEMMA)
    assert all(back.start_s - end.end_s < 1.0 for end, back in zip(ends, releases, strict=True))


def test_a_model_that_is_only_kept_is_evicted_at_once_for_a_job_that_needs_another(card: Callable[..., Card]) -> None:
    found = card(keep_warm="auto")
    for number in range(10):
        found.at(10.0 * number, "people")
    found.at(95.0, "batch", QWEN)
    found.end()
    evicted = next(item for item in found.uses("release", GEMMA) if item.start_s >= 95.0)
    assert evicted.start_s == pytest.approx(95.0, abs=0.5)
    assert found.uses("load", QWEN)[0].start_s == pytest.approx(evicted.end_s, abs=0.5)


def test_memory_that_comes_back_after_a_models_time_is_not_taken_twice(card: Callable[..., Card]) -> None:
    found = card(keep_warm="auto")
    for number in range(10):
        found.at(10.0 * number, "people")
    found.time.run(100.0)
    while found.ollama.residents():
        found.time.run(found.time.now_s + 0.25)
    found.ask("batch", QWEN)
    found.end()


# Jobs that are near


def test_a_batch_jobs_model_stays_while_a_person_uses_another_that_fits_beside_it(card: Callable[..., Card]) -> None:
    found = card(max_models=2)
    found.ask("batch", output_s=60.0)
    for number in range(5):
        found.at(10.0 + 10.0 * number, "people", NOMIC)
    found.end()
    assert found.jobs[0].record.preemptions == 5
    assert len(found.uses("load", GEMMA)) == 1


def test_a_model_that_does_not_fit_beside_the_next_ones_is_unloaded_before(card: Callable[..., Card]) -> None:
    found = card(max_models=2)
    found.ask("batch", output_s=60.0)
    found.at(10.0, "people", QWEN)
    found.end()
    assert len(found.uses("load", GEMMA)) == 2
    assert found.uses("load", QWEN)[0].start_s >= found.uses("release", GEMMA)[0].end_s


def test_a_model_that_fits_beside_memory_that_comes_back_does_not_wait_for_it(card: Callable[..., Card]) -> None:
    found = card()
    found.ask("batch", output_s=60.0)
    found.at(10.0, "people", NOMIC)
    found.end()
    load, back = found.uses("load", NOMIC)[0], found.uses("release", GEMMA)[0]
    assert back.start_s <= load.start_s < back.end_s
    again, back = found.uses("load", GEMMA)[1], found.uses("release", NOMIC)[0]
    assert back.start_s <= again.start_s < back.end_s


def test_jobs_of_two_models_in_turn_load_each_once_where_both_fit(card: Callable[..., Card]) -> None:
    found = card(max_models=2, affinity="0s")
    for _ in range(10):
        found.ask("batch")
        found.ask("batch", NOMIC)
    found.end()
    assert (len(found.uses("load", GEMMA)), len(found.uses("load", NOMIC))) == (1, 1)
    assert found.ollama.residents() == (), "nothing is kept when nothing waits"


# One switch for all that wait


@pytest.mark.parametrize("batch", [{"yields_to": ["people"]}, {}], ids=["a queue that comes first", "two equal queues"])
def test_embeddings_that_come_while_their_model_is_loaded_share_its_switch(
    card: Callable[..., Card], batch: dict[str, Any]
) -> None:
    found = card(batch=batch)
    for number in range(40):
        found.at(20.0 * number, "batch", output_s=15.0)
    for number in range(270):
        found.at(3.0 * number, "people", NOMIC)
    found.end()
    served_s = {item.owner: item.start_s for item in found.uses("prompt", NOMIC)}
    came_s = {str(job.id): (job.record.enqueued_at - START).total_seconds() for job in found.jobs}
    assert len(served_s) == 270

    stays = sorted(
        pair for model in (GEMMA, NOMIC) for pair in zip(found.uses("load", model), found.uses("release", model), strict=True)
    )
    assert len(stays) > 10
    for load, release in stays:
        if load.model == NOMIC.name:
            late = {owner for owner, at_s in served_s.items() if came_s[owner] < release.start_s < at_s}
            assert late == set(), "who came before the switch back was served before it"
    for (load, release), (again, _) in pairwise(stays):
        if load.model == again.model:
            assert came_s[again.owner] >= release.start_s, "only for a job that came while the memory came back"
