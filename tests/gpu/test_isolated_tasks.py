"""Isolated tasks on a real card: which cards they see, and that their memory is back however they are ended."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from gpuqueue import JobCancelled, JobFailed
from tests.gpu import isolated_functions as functions
from tests.gpu.conftest import NOISE_BYTES, ROOT, SIZE_BYTES, START_S
from tests.processes import started

DEADLINE_S = 15  # time enough to take the memory before it
QUEUES = '[queues.train]\ngpu = true\nbackend = "none"\n[queues.mail]\n'


@pytest.fixture
def gq(card, make_queue):
    return make_queue(f'[gpu]\ndevice = "{card.uuid}"\nbudget = "{2 * SIZE_BYTES}B"\n{QUEUES}')


@pytest.fixture
def deaf(gq):
    """A task that takes memory and does not end when it is asked to."""
    return gq.task(name="deaf", queue="train", isolate=True, max_attempts=1)(functions.take_and_never_return)


@pytest.fixture
def take(gq):
    return gq.task(name="take", queue="train", isolate=True)(functions.take_and_return)


@pytest.fixture
def is_back(card, cuda) -> Callable[[], bool]:
    """Whether as much is free on the card as before the test."""
    before_bytes = card.free_bytes
    return lambda: card.free_bytes >= before_bytes - NOISE_BYTES


@pytest.fixture
def start_deaf_job(deaf, card, is_back, tmp_path, until):
    """Start a deaf job; returns it once it holds the memory, with the card reserved for it."""

    def start(how: str = "driver", **options):
        file = tmp_path / "deaf"
        job = deaf.using(**options).enqueue(file=str(file), size_bytes=SIZE_BYTES, how=how)
        until(lambda: file.exists() or job.refresh().error is not None, "the job's memory", timeout_s=START_S)
        assert file.exists(), job.error
        assert not is_back()
        assert job.refresh().record.device == card.uuid
        return job

    return start


def test_a_cancelled_task_is_killed_and_its_memory_and_its_card_are_back(
    start_deaf_job, take, is_back, how, gq, start_worker, until
):
    start_worker(gq)
    job = start_deaf_job(how)
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout_s=DEADLINE_S)
    assert job.refresh().error.message == "cancelled while running"
    until(lambda: job.refresh().record.device is None, "the card's release")
    until(is_back, "the memory's return")
    assert take.enqueue(size_bytes=SIZE_BYTES, how=how).result(timeout_s=START_S) == "taken"


def test_a_task_past_its_deadline_is_killed_and_its_memory_and_its_card_are_back(
    start_deaf_job, take, is_back, gq, start_worker, until
):
    start_worker(gq)
    job = start_deaf_job(timeout=f"{DEADLINE_S}s")
    with pytest.raises(JobFailed, match=f"ran longer than its timeout of {DEADLINE_S} s"):
        job.result(timeout_s=DEADLINE_S + 30)
    assert job.refresh().error.code == "timed_out"
    until(lambda: job.refresh().record.device is None, "the card's release")
    until(is_back, "the memory's return")
    assert take.enqueue(size_bytes=SIZE_BYTES).result(timeout_s=START_S) == "taken"


def test_a_killed_workers_task_gives_its_memory_back_and_the_next_worker_releases_the_card(
    start_deaf_job, is_back, gq, start_worker, until, tmp_path
):
    code = (
        "import sys; from gpuqueue import GPUQueue, Worker; from tests.gpu import isolated_functions\n"
        "gq = GPUQueue.from_config(sys.argv[1])\n"
        "gq.task(name='deaf', queue='train', isolate=True)(isolated_functions.take_and_never_return)\n"
        "Worker(gq).run()"
    )
    with started([sys.executable, "-c", code, str(tmp_path / "gpuqueue.toml")], cwd=ROOT) as worker:
        job = start_deaf_job()
        worker.kill()
        until(is_back, "the memory's return")
    job.cancel()  # else the next worker runs it again
    start_worker(gq)
    until(lambda: job.refresh().record.device is None, "the card's release")
    assert job.state == "cancelled"


@pytest.mark.parametrize("by", ["index", "UUID"])
def test_a_task_sees_the_card_of_its_job_alone(cards, cuda, make_queue, start_worker, by):
    devices = {f"gpu{card.index}" if by == "index" else card.uuid: card for card in cards}
    gq = make_queue("".join(f'[[gpu]]\ndevice = "{name}"\nbudget = "1GB"\n' for name in devices) + QUEUES)
    seen = gq.task(name="seen", queue="train", isolate=True)(functions.cards_seen)
    start_worker(gq)
    for name, card in devices.items():
        assert seen.using(device=name, vram="0.1GB").enqueue().result(timeout_s=START_S) == [card.uuid]


def test_a_task_without_a_device_sees_no_card(gq, cuda, start_worker):
    seen = gq.task(name="seen", queue="mail", isolate=True)(functions.cards_seen)
    start_worker(gq)
    assert seen.enqueue().result(timeout_s=START_S) == []
