"""What a worker learns from the figures of an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import Config, GPUQueue, State
from gpuqueue.domain import estimates
from gpuqueue.domain.estimates import OUTPUT, OUTPUT_RATE, PROMPT_RATE, RUN, SPREAD, work_key
from gpuqueue.domain.job import Lease
from gpuqueue.domain.models import CHAT, EMBED
from gpuqueue.testing.virtual import VirtualModel, VirtualOllama, VirtualQueue, VirtualTime, VirtualWorker
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.observations import Observations
from gpuqueue.worker.site import Site

GEMMA = VirtualModel("gemma4:e4b", 4_500_000_000, tokens_per_s=60.0)
NOMIC = VirtualModel("nomic-embed-text", 500_000_000, tokens_per_s=100.0)


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def gq(tmp_path: Path, time: VirtualTime) -> Iterator[VirtualQueue]:
    config = Config.load(
        None,
        environ={},
        database=str(tmp_path / "q.db"),
        gpu=[{"budget": "5GB", "margin": "3GB"}],
        ollama={"url": "http://127.0.0.1:9"},
        models={model.name: {"vram": model.size_bytes} for model in (GEMMA, NOMIC)},
        queues={"work": {"gpu": True, "concurrency": 1}},
    )
    made = VirtualQueue(config, time)
    worker = VirtualWorker(made, time, VirtualOllama(time, [GEMMA, NOMIC]))
    yield made
    worker.close()
    time.close()
    made.close()


def known(gq: VirtualQueue, time: VirtualTime) -> dict[tuple[str, str], float]:
    time.run(300)
    assert not gq.jobs(state=State.AVAILABLE)
    with gq.store.reading() as reads:
        return {key: found.value for key, found in reads.estimates().items()}


def test_an_embedding_takes_longer_than_nothing(gq: VirtualQueue, time: VirtualTime) -> None:
    gq.ollama.embed(NOMIC.name, input="x" * 4000, queue="work")
    assert 0 < known(gq, time)[estimates.RUN, work_key("work", EMBED.name, NOMIC.name)] < 1, "its load is not part of it"


def test_the_turns_of_jobs_and_the_release_of_their_model_are_learned(gq: VirtualQueue, time: VirtualTime) -> None:
    for output_s in (10, 20):
        said = [{"role": "user", "content": "x"}]
        gq.ollama.chat(GEMMA.name, messages=said, queue="work", options={"num_predict": output_s * 60})
    found = known(gq, time)
    turn = (estimates.TURN, work_key("work", CHAT.name, GEMMA.name))
    assert 15 < found[turn] < 18, "a load and 10 s, then 20 s"
    assert found[turn[0] + SPREAD, turn[1]] > 0
    assert 0.5 <= found[estimates.RELEASE, GEMMA.name] <= 2


LEASE = Lease(1, 1, "default", "ollama.chat", 1, 1, {}, None, datetime.now(UTC), model="m")
ANSWER = {"prompt_tokens": 100, "prompt_s": 0.5, "output_tokens": 400, "generate_s": 8.0}


@pytest.fixture
def learned(make_queue: Callable[..., GPUQueue]) -> Callable[[dict[str, Any]], dict[str, float]]:
    gq = make_queue()
    clock = Clock(wall=gq.now_us)
    observations = Observations(Site("w", gq.store, gq.plugins, gq.own_settings(), clock, WorkerLog("w"), {}))

    def learn(answer: dict[str, Any]) -> dict[str, float]:
        observations.of_answer(LEASE, answer, {})
        observations.tell()
        return {kind: found.value for (kind, _), found in gq.view().estimates.items() if not kind.endswith(SPREAD)}

    return learn


def test_an_answer_teaches_how_fast_it_was_read_and_written_and_how_long_it_is(learned) -> None:
    assert learned(ANSWER) == {PROMPT_RATE: 200.0, OUTPUT_RATE: 50.0, OUTPUT: 400, RUN: 8.5}


def test_a_continued_answer_teaches_its_whole_length_and_the_speed_of_its_own_tokens(learned) -> None:
    assert learned({**ANSWER, "continued_tokens": 300, "generate_s": 2.0}) == {
        PROMPT_RATE: 200.0,
        OUTPUT_RATE: 50.0,
        OUTPUT: 400,
        RUN: 8.5,  # as if it had not been interrupted
    }


def test_an_answer_that_was_complete_when_it_was_cut_teaches_its_length_alone(learned) -> None:
    assert learned({"output_tokens": 400, "continued_tokens": 400, "prompt_s": 0.0, "generate_s": 0.0}) == {OUTPUT: 400}
