"""A worker on virtual time decides as the real one does: its dispatcher, policies, judge and store are the real ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpuqueue import Config, JobHandle, State
from gpuqueue.testing.virtual import Interval, VirtualModel, VirtualOllama, VirtualQueue, VirtualTime, VirtualWorker

GEMMA = VirtualModel("gemma4:e4b", 4_500_000_000, tokens_per_s=60.0)
QWEN = VirtualModel("qwen3:4b", 3_000_000_000, tokens_per_s=70.0)
HOUR_S = 3600.0


class Desk:
    """A queue for people and one for batch work, on one card."""

    def __init__(self, folder: Path, time: VirtualTime, resume: str = "continue", **batch: object) -> None:
        folder.mkdir()
        config = Config.load(
            None,
            environ={},
            database=str(folder / "q.db"),
            gpu=[{"budget": "5GB", "margin": "3GB"}],
            ollama={"url": "http://127.0.0.1:9"},
            models={
                model.name: {"vram": model.size_bytes, "options": {"num_ctx": 8192}, "resume": resume} for model in (GEMMA, QWEN)
            },
            queues={
                "people": {"gpu": True, "concurrency": 1},
                "batch": {"gpu": True, "concurrency": 1, "yields_to": ["people"], **batch},
            },
        )
        self.time = time
        self.ollama = VirtualOllama(time, [GEMMA, QWEN])
        self.gq = VirtualQueue(config, time)
        self.worker = VirtualWorker(self.gq, time, self.ollama)

    def ask(self, queue: str, *, model: VirtualModel = GEMMA, output_s: float = 10.0) -> JobHandle:
        words = [{"role": "user", "content": "x" * 2000}]
        options = {"num_predict": round(output_s * model.tokens_per_s)}
        return self.gq.ollama.chat(model.name, messages=words, queue=queue, options=options)

    def uses(self, job: JobHandle, kind: str) -> list[Interval]:
        return [item for item in self.ollama.intervals if (item.owner, item.kind) == (str(job.id), kind)]

    def close(self) -> None:
        self.time.close()
        self.gq.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "desk", VirtualTime())
    yield made
    made.close()


def test_a_persons_job_takes_the_card_from_a_batch_job_which_ends_later(desk: Desk) -> None:
    batch = desk.ask("batch", output_s=60.0)
    people: list[JobHandle] = []
    desk.time.call_at(20.0, lambda: people.append(desk.ask("people")))
    desk.time.run(HOUR_S)
    (person,) = people
    assert (batch.refresh().state, person.refresh().state) == (State.COMPLETED, State.COMPLETED)
    assert batch.record.preemptions == 1
    assert desk.uses(person, "prompt")[0].start_s == pytest.approx(20.0, abs=0.5)
    assert [len(desk.uses(job, "decode")) for job in (batch, person)] == [2, 1]
    assert not desk.gq.view().devices["gpu0"].reservations
    assert (desk.ollama.overlap_count, desk.ollama.peak_bytes) == (0, GEMMA.size_bytes)
    assert desk.ollama.residents() == (), "nothing is kept when nothing waits"


def test_a_preempted_answer_is_continued_and_what_the_runner_still_knows_is_not_read_again(desk: Desk) -> None:
    batch = desk.ask("batch", output_s=60.0)
    desk.time.call_at(20.0, lambda: desk.ask("people"))
    desk.time.call_at(45.0, lambda: desk.ask("people", model=QWEN))
    desk.time.run(HOUR_S)
    answer = batch.result()
    assert (batch.record.preemptions, answer["output_tokens"]) == (2, 3600)
    wrote = [item.tokens for item in desk.uses(batch, "decode")]
    assert (len(wrote), sum(wrote)) == (3, 3600), "nothing was written twice"
    assert answer["continued_tokens"] == sum(wrote[:2])
    read = desk.uses(batch, "prompt")
    assert [item.tokens for item in read] == [500, 500 + wrote[0], 500 + wrote[0] + wrote[1]]
    assert [item.end_s > item.start_s for item in read] == [True, False, True], "its model was unloaded in between once"


def test_where_it_is_switched_off_a_preempted_answer_starts_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk", VirtualTime(), resume="restart")
    batch = desk.ask("batch", output_s=60.0)
    desk.time.call_at(20.0, lambda: desk.ask("people"))
    desk.time.run(HOUR_S)
    assert "continued_tokens" not in batch.result()
    assert desk.uses(batch, "decode")[-1].tokens == 3600
    desk.close()


def test_a_job_for_another_model_evicts_the_first_and_its_memory_is_back_before(desk: Desk) -> None:
    first, second = desk.ask("batch"), desk.ask("batch", model=QWEN)
    desk.time.run(HOUR_S)
    assert (first.refresh().state, second.refresh().state) == (State.COMPLETED, State.COMPLETED)
    released = next(item for item in desk.ollama.intervals if item.kind == "release")
    assert desk.uses(second, "load")[0].start_s >= released.end_s
    assert desk.ollama.peak_bytes == GEMMA.size_bytes


def test_a_queue_starts_nothing_inside_its_pause_and_starts_when_that_ends(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "desk", VirtualTime(datetime(2026, 1, 5, 17, tzinfo=UTC)), pause=["09:00-18:00"], timezone="UTC")
    job = desk.ask("batch")
    desk.time.run(2 * HOUR_S)
    assert desk.uses(job, "load")[0].start_s == pytest.approx(HOUR_S, abs=1.0)
    assert job.refresh().state is State.COMPLETED
    desk.close()


def test_the_same_hour_passes_the_same_way(tmp_path: Path) -> None:
    def hour(folder: Path) -> list[Interval]:
        desk = Desk(folder, VirtualTime())
        for number in range(60):
            desk.ask("batch", output_s=30.0 + number)
        for number in range(30):
            desk.time.call_at(40.0 + 100.0 * number, lambda: desk.ask("people", output_s=5.0))
        desk.time.run(HOUR_S)
        counts = desk.gq.counts()
        assert counts["people"]["completed"] == 30
        desk.close()
        return desk.ollama.intervals

    first = hour(tmp_path / "first")
    assert first == hour(tmp_path / "second")
    assert sum(item.end_s - item.start_s for item in first) > 0.9 * HOUR_S
