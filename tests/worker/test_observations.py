"""What a worker learns from the figures of an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuqueue import Config, State
from gpuqueue.domain import estimates
from gpuqueue.domain.estimates import SPREAD, work_key
from gpuqueue.domain.models import CHAT, EMBED
from gpuqueue.testing.virtual import VirtualModel, VirtualOllama, VirtualQueue, VirtualTime, VirtualWorker

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
