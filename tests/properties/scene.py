"""Owns what the machine plays with: a queue object on a clock of its own, its queues, cards and tasks, and simulated workers.

A simulated worker has a real dispatcher, judge and output, and no thread: whoever plays it says what it does next.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpuqueue import Config, GPUQueue, backoff, hookimpl
from gpuqueue.devices.cached import CachedDevice
from gpuqueue.domain.answers import Demand
from gpuqueue.domain.device import Reading
from gpuqueue.domain.job import Lease
from gpuqueue.domain.settings import PlacementMode
from gpuqueue.store import open_store
from gpuqueue.store.store import Store
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.clock import Clock as WorkerClock
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.judge import Judge
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.output import Output
from gpuqueue.worker.running import Attempt
from gpuqueue.worker.site import Site
from tests.properties.endings import BACKOFF_S
from tests.properties.model_jobs import LEASE_S, MAX_CRASHES, PARALLEL, SAFE_PART, SECOND, Ended, Job

START = 1_700_000_000_000_000 - 1_700_000_000_000_000 % (86_400 * SECOND) + 8 * 3600 * SECOND  # eight o'clock, UTC
GB = 10**9
GEMMA, NOMIC, UNKNOWN = "gemma4:e4b", "nomic-embed-text", "nobody-knows"
SIZES = {GEMMA: 45 * GB // 10, NOMIC: GB // 2}

TWO_CARDS = [{"device": 0, "budget": "5GB", "slots": 3, "max_models": 2}, {"device": 1, "budget": "3GB"}]
CARDS: dict[str, tuple[PlacementMode, list[dict[str, Any]]]] = {
    "one card, one job at a time": ("pack", [{"device": 0, "budget": "5GB"}]),
    "two cards, one shared by jobs": ("pack", TWO_CARDS),
    "two cards, the emptier one first": ("spread", TWO_CARDS),
}
QUEUES: dict[str, dict[str, Any]] = {
    "mail": {},
    "narrow": {"concurrency": 2, "max_attempts": 2, "priority": 1},
    "office": {"pause": ["09:00-18:00"], "yields_to": ["narrow"]},
    "remote": {"backend": "ollama", "when_unavailable": "retry", "retry_every": "60s"},
    "ai": {"gpu": True, "concurrency": 2, "when_unavailable": "reject"},
    "batch": {
        "gpu": True,
        "yields_to": ["ai"],
        "when_unavailable": "retry",
        "retry_every": "60s",
        "timeout": "100s",
        "max_preemptions": 1,
    },
    "train": {
        "gpu": True,
        "backend": "none",
        "concurrency": 3,
        "yields_to": ["mail", "ai"],
        "min_run": "0s",
        "max_preemptions": 1,
    },
    "steady": {"gpu": True, "backend": "none", "yields_to": ["train"], "yield_mode": "drain"},
    "idle": {"yields_to": ["office", "batch"]},
}
PLAIN = ("mail", "narrow", "office", "remote", "idle")
ON_DEVICES = ("ai", "batch", "train", "steady")
COMPUTING = ("compute", "firm")  # tasks whose jobs say themselves what they need; the second cannot be asked to make room
ASYNCHRONOUS = frozenset({"awork"})
PREEMPTIBLE = ("compute", "ollama.generate")


class Clock:
    """The time of everything that is played."""

    now = START


class ClockedQueue(GPUQueue):
    """A queue object that reads the clock of the play, and whose file need not survive the machine."""

    clock: Clock

    def open_store(self, *, patient: bool = False) -> Store:
        return open_store(self.database, synchronous="off", patient=patient)


class Sizes:
    """A computing job says itself what it needs."""

    @hookimpl
    def job_demand(self, details: Any) -> Demand | None:
        job = details.job
        return Demand(int(job.arguments["gb"] * GB), job.arguments["model"]) if job.task in COMPUTING else None


def demand_of(job: Job, largest: int) -> tuple[int, str]:
    """What a job needs of a device, in bytes and model: what it says itself, its model's configured size, or all there is."""
    arguments = job["arguments"]
    if job["task"] in COMPUTING:
        return int(arguments["gb"] * GB), arguments["model"]
    return SIZES.get(arguments["model"], largest), arguments["model"]


def kind_of(task: str) -> str:
    return "coroutine" if task in ASYNCHRONOUS else "thread"


def is_continued(task: str) -> bool:
    return task == "ollama.generate"


def is_preemptible(task: str) -> bool:
    return task in PREEMPTIBLE


class Card:
    """A card that tells only whether it is there."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.is_lost = False

    def read(self) -> Reading:
        return Reading(self._now(), lost="it fell off the bus" if self.is_lost else None)


@cache
def _new_file() -> bytes:
    """The file of a queue without jobs, made once: making it takes a second."""
    with TemporaryDirectory() as folder:
        open_store(Path(folder) / "new.db").close()
        return (Path(folder) / "new.db").read_bytes()


def open_queue(folder: Path, cards: str, clock: Clock) -> ClockedQueue:
    """Open a new queue object on a new file, which is at the same place each time."""
    path = folder / "jobs.db"
    for end in ("-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    path.write_bytes(_new_file())
    config = Config.load(
        None,
        environ={},
        database=str(path),
        placement=CARDS[cards][0],
        gpu=CARDS[cards][1],
        queues=QUEUES,
        models={name: {"vram": size} for name, size in SIZES.items()},
        ollama={"url": "http://127.0.0.1:9", "probe_every": "5s", "num_parallel": PARALLEL},
    )
    gq = ClockedQueue(config=config, plugins=[Sizes()], discover_plugins=False)
    gq.clock = clock
    gq.clock_ns = lambda: clock.now * 1000
    waits = {task: backoff.fixed(wait_s, jitter=0) for task, wait_s in BACKOFF_S.items()}

    @gq.task(name="work", queue="mail", backoff=waits["work"])
    def work(n: int) -> int:
        return n

    @gq.task(name="awork", queue="mail", backoff=waits["awork"], max_attempts=2)
    async def awork(n: int) -> int:
        return n

    @gq.task(
        name="picky", queue="narrow", retry_on=(OSError, KeyError), discard_on=KeyError, max_attempts=3, backoff=waits["picky"]
    )
    def picky(n: int) -> int:
        return n

    @gq.task(name="compute", queue="train", backoff=waits["compute"], preemptible=True)
    def compute(gb: float, model: str) -> None: ...

    @gq.task(name="firm", queue="train", backoff=waits["firm"])
    def firm(gb: float, model: str) -> None: ...

    return gq


@dataclass
class PlayedWorker:
    """A worker process without threads: what it has claimed, what has ended and is not written yet, what it must clean up."""

    name: str
    extended_at: int
    clock: Clock = field(default_factory=Clock)
    dispatcher: Dispatcher | None = None
    running: list[Attempt] = field(default_factory=list)
    ended: list[tuple[Any, Ended]] = field(default_factory=list)
    clean_ups: list[tuple[int, int]] = field(default_factory=list)  # (job, lease)

    def may_claim(self) -> bool:
        """Whether its lease surely still runs."""
        return self.clock.now - self.extended_at < LEASE_S * SECOND * SAFE_PART


class Workshop:
    """Makes workers, and has what they share."""

    def __init__(self, gq: ClockedQueue, clock: Clock) -> None:
        self.settings = gq.own_settings()
        self._gq = gq
        self._clock = clock
        self._numbers = itertools.count(1)
        self.output = Output(gq.store, WorkerClock(wall=gq.now_us), Orders())
        self.cards = {device.name: Card(gq.now) for device in self.settings.devices}
        site = self._site("w", None)
        self.backends = Backends(site)
        self.judge = Judge(
            site, self.backends, tasks=gq.tasks, max_payload_bytes=gq.config.max_payload_bytes, max_crashes=MAX_CRASHES
        )

    def _site(self, name: str, queues: tuple[str, ...] | None) -> Site:
        gq = self._gq
        devices = {card: CachedDevice(device) for card, device in self.cards.items()}
        wall = WorkerClock(wall=gq.now_us)
        return Site(name, gq.store, gq.plugins, self.settings, wall, WorkerLog(name), devices, queues)

    def name(self) -> str:
        return f"w{next(self._numbers)}"

    def worker(self, name: str, queues: tuple[str, ...] | None) -> PlayedWorker:
        worker = PlayedWorker(name, self._clock.now, self._clock)
        site = self._site(name, queues)
        worker.dispatcher = Dispatcher(
            site,
            may_claim=worker.may_claim,
            models_known=lambda: True,
            is_preemptible=is_preemptible,
            continues=lambda job: is_continued(job.task),
            where_alone=lambda _: "process",
        )
        return worker

    def attempt(self, lease: Lease) -> Attempt:
        return Attempt(lease, self.output, WorkerClock(wall=self._gq.now_us))
