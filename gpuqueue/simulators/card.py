"""Simulates one GPU: its memory, its health, and a record of everything that computed on it.

It must know nothing of Ollama, NVML or queues.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = [
    "CardProcess",
    "CardReading",
    "Computation",
    "GpuIsLost",
    "OutOfMemory",
    "ReadableCard",
    "Release",
    "SimulatedCard",
]

DEFAULT_TOTAL_BYTES = 8_589_934_592
DEFAULT_RESERVED_BYTES = 201_326_592
_LOG_LENGTH = 100_000


class OutOfMemory(Exception):
    """The card does not have that many bytes free; nothing was allocated."""


class GpuIsLost(Exception):
    """The card has fallen off the bus (`card.lost`); nothing was done."""


@dataclass(frozen=True, slots=True)
class CardProcess:
    """One process that holds memory on the card. The pid is made up and belongs to no real process."""

    pid: int
    name: str
    used_bytes: int


@dataclass(frozen=True, slots=True)
class CardReading:
    """What NVML would report of the card at one time.

    `used_bytes` includes `reserved_bytes`, memory that is still being released, and other programs;
    `used_bytes + free_bytes == total_bytes`. `utilisation_percent` is 0..100.
    """

    name: str
    uuid: str
    total_bytes: int
    reserved_bytes: int
    used_bytes: int
    free_bytes: int
    temperature_c: int
    utilisation_percent: int
    power_w: float
    lost: bool
    processes: tuple[CardProcess, ...]


@dataclass(frozen=True, slots=True)
class Computation:
    """One finished use of the card. Times are seconds on the card's clock (`time.monotonic` unless another was given).

    A part (`prompt`, `decode`) lies inside the computation that it belongs to (`generate`) and is listed before it.
    """

    owner: str
    request: str
    kind: str
    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Release:
    """Memory that its owner has freed; it is available again at `ended_s`, on the card's clock."""

    owner: str
    freed_bytes: int
    started_s: float
    ended_s: float


@runtime_checkable
class ReadableCard(Protocol):
    """What simulated NVML reads: a `SimulatedCard`, or a card in another process."""

    def reading(self) -> CardReading:
        """Return the card's state now."""
        ...


@dataclass(slots=True)
class _Held:
    pid: int
    name: str
    used_bytes: int


class SimulatedCard:
    """One simulated GPU, shared by every simulator of one scenario; safe to use from any thread.

    speed: every simulated duration is divided by it, so 30 makes a card whose seconds last 33 ms.
    release_delay_s: (shortest, longest) simulated seconds until freed memory is really free again.
    clock: returns seconds that only grow; memory is released by this clock, without a thread or a sleep.
    """

    def __init__(
        self,
        *,
        total_bytes: int = DEFAULT_TOTAL_BYTES,
        reserved_bytes: int = DEFAULT_RESERVED_BYTES,
        speed: float = 1.0,
        name: str = "NVIDIA GeForce RTX 2060 SUPER",
        uuid: str = "GPU-5e1f0c1a-2060-5afe-c0de-000000000000",
        release_delay_s: tuple[float, float] = (0.5, 1.5),
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if speed <= 0:
            raise ValueError(f"speed must be greater than 0, not {speed}")
        if not 0 <= reserved_bytes <= total_bytes:
            raise ValueError(f"reserved_bytes must be between 0 and total_bytes ({total_bytes}), not {reserved_bytes}")
        if not 0 <= release_delay_s[0] <= release_delay_s[1]:
            raise ValueError(f"release_delay_s must be (shortest, longest) in seconds, not {release_delay_s}")
        self.total_bytes = total_bytes
        self.reserved_bytes = reserved_bytes
        self.speed = speed
        self.name = name
        self.uuid = uuid
        self.lost = False
        self.temperature_c: int | None = None  # None: as warm as its work makes it
        self.release_delay_s = release_delay_s
        self._compute_log: deque[Computation] = deque(maxlen=_LOG_LENGTH)
        self._release_log: deque[Release] = deque(maxlen=_LOG_LENGTH)
        self._clock = clock
        self._random = random.Random(seed)
        self._lock = threading.RLock()
        self._held: dict[str, _Held] = {}
        self._returning: list[tuple[float, int]] = []
        self._other_bytes = 0
        self._active: dict[int, tuple[str, str, float]] = {}  # request, owner, start
        self._busy_since = 0.0
        self._busy_s = 0.0
        self._pids = itertools.count(4001)
        self._tokens = itertools.count()
        self._overlaps = self._loads = self._unloads = self._spills = self._peak_bytes = 0

    def real_seconds(self, simulated_s: float) -> float:
        """Return how long `simulated_s` lasts on a real clock, in seconds."""
        return simulated_s / self.speed

    # Memory

    def allocate(self, owner: str, bytes: int, *, name: str = "ollama") -> None:
        """Give `bytes` of memory to `owner`, in addition to what it holds.

        `name` is the process's name in the process list.
        Raises: OutOfMemory if that much is not free now; GpuIsLost.
        """
        with self._lock:
            self._check_present()
            free = self._free_now()
            if bytes > free:
                raise OutOfMemory(f"{owner} asked for {bytes} bytes, but only {free} of {self.total_bytes} are free")
            held = self._held.setdefault(owner, _Held(next(self._pids), name, 0))
            held.used_bytes += bytes
            self._peak_bytes = max(self._peak_bytes, self._programs_bytes())

    def free(self, owner: str, *, delay_s: float | None = None) -> float:
        """Take all memory from `owner`; the card's process list drops it at once, the bytes become available later.

        delay_s: simulated seconds; None draws one from `release_delay_s`.
        Returns: the real seconds until the memory is free; 0.0 if `owner` held none.
        """
        with self._lock:
            held = self._held.pop(owner, None)
            if held is None:
                return 0.0
            delay = self.real_seconds(self._random.uniform(*self.release_delay_s) if delay_s is None else delay_s)
            now = self._clock()
            self._returning.append((now + delay, held.used_bytes))
            self._release_log.append(Release(owner, held.used_bytes, now, now + delay))
            self._unloads += 1
            return delay

    def take(self, bytes: int) -> None:
        """Let another program, unknown to any queue, take `bytes`.

        Raises: OutOfMemory if that much is not free now.
        """
        with self._lock:
            if bytes < 0 or bytes > self._free_now():
                raise OutOfMemory(f"another program asked for {bytes} bytes, but only {self._free_now()} are free")
            self._other_bytes += bytes

    def give(self, bytes: int) -> None:
        """Let the other program release `bytes`, at once.

        Raises: ValueError if it holds less.
        """
        with self._lock:
            if not 0 <= bytes <= self._other_bytes:
                raise ValueError(f"the other program holds {self._other_bytes} bytes and cannot release {bytes}")
            self._other_bytes -= bytes

    @property
    def used_bytes(self) -> int:
        """Bytes not free: reserved, allocated, still being released, and other programs'."""
        with self._lock:
            return self.total_bytes - self._free_now()

    @property
    def free_bytes(self) -> int:
        """Bytes that can be allocated now."""
        with self._lock:
            return self._free_now()

    @property
    def returning_bytes(self) -> int:
        """Freed bytes that the driver has not released yet."""
        with self._lock:
            return self._returning_now()

    @property
    def returned_in_s(self) -> float:
        """Real seconds until every freed byte is available; 0.0 if none is outstanding."""
        with self._lock:
            self._returning_now()
            now = self._clock()
            return max([0.0, *(at - now for at, _ in self._returning)])

    @property
    def other_bytes(self) -> int:
        """Bytes that the other program holds."""
        with self._lock:
            return self._other_bytes

    def held_bytes(self, owner: str) -> int:
        """Return the bytes that `owner` holds, 0 if none."""
        with self._lock:
            held = self._held.get(owner)
            return held.used_bytes if held else 0

    def processes(self) -> tuple[CardProcess, ...]:
        """Return the processes on the card, in order of arrival; the other program is last."""
        with self._lock:
            listed = [CardProcess(held.pid, held.name, held.used_bytes) for held in self._held.values()]
            if self._other_bytes:
                listed.append(CardProcess(4000, "another program", self._other_bytes))
            return tuple(listed)

    def reading(self) -> CardReading:
        """Return the card's state now; a lost card is read too, with `lost` set."""
        with self._lock:
            free = self._free_now()
            busy = bool(self._active)
            return CardReading(
                name=self.name,
                uuid=self.uuid,
                total_bytes=self.total_bytes,
                reserved_bytes=self.reserved_bytes,
                used_bytes=self.total_bytes - free,
                free_bytes=free,
                temperature_c=(66 if busy else 41) if self.temperature_c is None else self.temperature_c,
                utilisation_percent=97 if busy else 0,
                power_w=163.5 if busy else 14.5,
                lost=self.lost,
                processes=self.processes(),
            )

    # The record

    @contextmanager
    def computing(
        self, owner: str, *, request: str | None = None, kind: str = "compute", together: bool = False
    ) -> Iterator[None]:
        """Record that `owner` computes while the block runs.

        request: what the computation belongs to, `owner` unless given. Two computations of one request are not an overlap.
        together: nor are those of one owner, which computes for several requests at once.
        kind: `load` is counted as a load; any other word is only logged.
        Raises: GpuIsLost.
        """
        of = owner if request is None else request
        with self._lock:
            self._check_present()
            started = self._clock()
            if any(other != of and not (together and whose == owner) for other, whose, _ in self._active.values()):
                self._overlaps += 1
            if not self._active:
                self._busy_since = started
            token = next(self._tokens)
            self._active[token] = (of, owner, started)
            if kind == "load":
                self._loads += 1
        try:
            yield
        finally:
            with self._lock:
                ended = self._clock()
                del self._active[token]
                if not self._active:
                    self._busy_s += ended - self._busy_since
                self._compute_log.append(Computation(owner, of, kind, started, ended))

    @contextmanager
    def part(self, owner: str, *, request: str, kind: str) -> Iterator[None]:
        """Record that the block is one part of a running computation: it is only logged."""
        started = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._compute_log.append(Computation(owner, request, kind, started, self._clock()))

    def note_spill(self) -> None:
        """Count a load that did not fit and left layers to the CPU."""
        with self._lock:
            self._spills += 1

    @property
    def overlap_count(self) -> int:
        """How often a computation started while one of another request was running."""
        with self._lock:
            return self._overlaps

    @property
    def peak_bytes(self) -> int:
        """The most bytes allocated at once, with memory still being released, without reserved memory and other programs'."""
        with self._lock:
            return self._peak_bytes

    @property
    def load_count(self) -> int:
        """How many loads started, aborted ones included."""
        with self._lock:
            return self._loads

    @property
    def compute_log(self) -> tuple[Computation, ...]:
        """The finished computations, in the order in which they ended; at most the last 100,000."""
        with self._lock:
            return tuple(self._compute_log)

    @property
    def release_log(self) -> tuple[Release, ...]:
        """All memory that was freed, in order, including what is still being released; at most the last 100,000."""
        with self._lock:
            return tuple(self._release_log)

    @property
    def computing_now(self) -> tuple[str, ...]:
        """The requests that compute now, the oldest first."""
        with self._lock:
            return tuple(of for of, _, _ in self._active.values())

    def report(self) -> dict[str, int | float]:
        """Return what happened on the card so far, to check a queue's promises from outside it.

        Returns: {"overlaps": computations started during another request's, "peak_bytes": see `peak_bytes`,
        "total_bytes": the card's size, "loads": loads started, "unloads": allocations freed,
        "spills": loads that left layers to the CPU, "busy_s": real seconds in which anything computed}.
        """
        with self._lock:
            busy = self._busy_s + (self._clock() - self._busy_since if self._active else 0.0)
            return {
                "overlaps": self._overlaps,
                "peak_bytes": self._peak_bytes,
                "total_bytes": self.total_bytes,
                "loads": self._loads,
                "unloads": self._unloads,
                "spills": self._spills,
                "busy_s": busy,
            }

    def _check_present(self) -> None:
        if self.lost:
            raise GpuIsLost(f"{self.name} ({self.uuid}) is lost")

    def _returning_now(self) -> int:
        now = self._clock()
        self._returning = [(at, size) for at, size in self._returning if at > now]
        return sum(size for _, size in self._returning)

    def _programs_bytes(self) -> int:
        return sum(held.used_bytes for held in self._held.values()) + self._returning_now()

    def _free_now(self) -> int:
        return self.total_bytes - self.reserved_bytes - self._other_bytes - self._programs_bytes()
