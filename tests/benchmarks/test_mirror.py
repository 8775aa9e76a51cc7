"""What the mirror costs the jobs while its server goes away twice, and how soon it is level again."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

import pytest
from gpuqueue_redis_mirror import Mirror
from mirror_scene.scene import level
from mirror_scene.servers import Server, servers

from gpuqueue import GPUQueue, Worker
from gpuqueue.testing.waiting import wait_until

pytestmark = pytest.mark.benchmark
JOBS, THREADS, WORK_S = 10_000, 16, 0.05
QUEUES = ("one", "two", "three", "four")
AWAY_AT = (2_500, 6_000)  # jobs finished
AWAY_S = 5.0
SPAN = "SELECT min(started_at), max(finished_at) FROM jobs"


def queue_of_jobs(folder: Path, url: str = "") -> GPUQueue:
    folder.mkdir()
    (folder / "gpuqueue.toml").write_text(
        f'database = "sqlite:///{folder}/gpuqueue.db"\n'
        + "".join(f"[queues.{name}]\n" for name in QUEUES)
        + (f'[mirror]\nurl = "{url}"\n' if url else "")
    )
    gq = GPUQueue.from_config(folder / "gpuqueue.toml", plugins={"mirror": Mirror()}, discover_plugins=False)

    @gq.task(name="work")
    def work(text: str) -> dict[str, str]:
        time.sleep(WORK_S)
        return {"text": text}

    for name in QUEUES:
        gq.enqueue_many([(work.using(queue=name), {"text": "x" * 100})] * (JOBS // len(QUEUES)))
    return gq


def drained_per_second(gq: GPUQueue, meanwhile: Callable[[], None] | None = None) -> float:
    """Run all jobs and return how many that were in a second, from the first start to the last finish."""
    worker = Worker(gq, threads=THREADS).start()
    if meanwhile:
        meanwhile()
    wait_until(lambda: finished(gq) == JOBS, "all jobs are done", timeout_s=600)
    with closing(sqlite3.connect(gq.database)) as connection:
        first_us, last_us = connection.execute(SPAN).fetchone()
    worker.stop()  # the mirror's writer writes what is left before it goes
    assert gq.counts() == {name: {"completed": JOBS // len(QUEUES)} for name in QUEUES}
    return JOBS / ((last_us - first_us) / 1e6)


def finished(gq: GPUQueue) -> int:
    return sum(states.get("completed", 0) for states in gq.counts().values())


def lag_s(gq: GPUQueue) -> float:
    """How long ago the first thing happened that the mirror does not show."""
    with gq.read() as reader:
        unread_since = reader.followers().get("mirror")
    return 0.0 if unread_since is None else (gq.now() - unread_since).total_seconds()


@pytest.fixture
def make_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Server]]:
    with servers(lambda: tmp_path_factory.mktemp("redis")) as make:
        yield make


def test_jobs_run_as_fast_and_the_mirror_is_level_soon_after_its_server_is_back(
    tmp_path: Path, make_server: Callable[[], Server]
) -> None:
    rates: list[tuple[float, float]] = []
    caught_up_s: list[float] = []
    for turn in range(2):
        server = make_server()
        gq = queue_of_jobs(tmp_path / f"mirrored-{turn}", server.url)

        def go_away_twice(gq: GPUQueue = gq, server: Server = server) -> None:
            for count in AWAY_AT:
                wait_until(lambda count=count: finished(gq) >= count, f"{count} jobs are done", timeout_s=600)
                server.kill()
                back_at_s = time.monotonic() + AWAY_S
                wait_until(lambda at_s=back_at_s: time.monotonic() >= at_s, "it was away", timeout_s=60)
                server.start()
                began_s = time.monotonic()
                assert lag_s(gq) > 1, "jobs ran on while it was away"
                wait_until(lambda: lag_s(gq) < 1, "the mirror has caught up", timeout_s=60)
                caught_up_s.append(time.monotonic() - began_s)

        mirrored = drained_per_second(gq, go_away_twice)
        level(gq, server)
        plain = drained_per_second(queue_of_jobs(tmp_path / f"plain-{turn}"))
        rates.append((mirrored, plain))
    ratio = median(mirrored / plain for mirrored, plain in rates)
    print(
        f"\njobs/s with the mirror and without: {', '.join(f'{a:.0f} and {b:.0f}' for a, b in rates)}; ratio {ratio:.3f}; "
        f"lag under 1 s after {', '.join(f'{seconds:.1f}' for seconds in caught_up_s)} s"
    )
    assert ratio >= 0.9
    assert max(caught_up_s) <= 10
