"""Simulates Ollama's own scheduler: resident models, requests that wait for a load, eviction, expiry; knows no HTTP.

request ── a resident suits ─────────────────────────────► slot ──► runs ──► released ──► expires ──► unloaded
   └── needs a load ──► queue (FIFO, limited) ──► evict ──► load ──┘
"""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gpuqueue.simulators.card import GpuIsLost, OutOfMemory, SimulatedCard
from gpuqueue.simulators.ollama.faults import Faults
from gpuqueue.simulators.ollama.go_json import FOREVER, expiry_ns
from gpuqueue.simulators.ollama.models import ModelSpec
from gpuqueue.simulators.ollama.options import RunnerOptions
from gpuqueue.simulators.ollama.server import ClientGone, Exchange

DEFAULT_KEEP_ALIVE_S = 300.0
START_S = (0.5, 1.5)
DISK_BYTES_PER_S = 2.5e9
PAGE_CACHE_BYTES_PER_S = 8e9
RECOVERY_LIMIT_S = 5.0
SLOW_UNLOAD_S = 8.0
CPU_SLOWDOWN = 7.0
# An assumption: n requests at once write n to the power of 0.6 times as many tokens in all as one does.
BATCHING = 0.6

BUSY = "server busy, please try again.  maximum pending requests exceeded"
_TERMINATED = "llama-server process has terminated: exit status 1: "


class ServerBusy(Exception):
    """Ollama's own queue is full."""


class LoadFailed(Exception):
    """The runner died while it loaded; the message is Ollama's, to be answered with status 500."""


@dataclass(slots=True, eq=False)
class Resident:
    """One loaded, or loading, model. `dead`: its process has crashed, but Ollama has not noticed yet."""

    spec: ModelSpec
    options: RunnerOptions
    owner: str
    size_bytes: int
    vram_bytes: int
    keep_alive_s: float
    slots: int = 1
    loading: bool = True
    dead: bool = False
    users: int = 0
    expires_at_s: float = FOREVER
    expires_ns: int = 0
    turns: deque[object] = field(default_factory=deque)

    @property
    def slowdown(self) -> float:
        """How many times longer a token takes because of layers on the CPU and other requests; 1.0 if there are none."""
        on_cpu = 1.0 - self.vram_bytes / self.size_bytes
        at_once = max(1, min(len(self.turns), self.slots))
        return (1.0 + on_cpu * (CPU_SLOWDOWN - 1.0)) * math.pow(at_once, 1.0 - BATCHING)


@dataclass(slots=True, eq=False)
class Call:
    """One request on its way to a model. keep_alive_s: simulated seconds; None keeps the resident's."""

    exchange: Exchange
    request: str
    spec: ModelSpec
    options: RunnerOptions
    keep_alive_s: float | None
    resident: Resident | None = None
    failure: Exception | None = None


class Scheduler:
    """Brings requests and residents together as Ollama does: first come, first served, without any fairness."""

    def __init__(
        self, card: SimulatedCard, faults: Faults, *, max_loaded: int, max_queue: int, num_parallel: int, seed: int
    ) -> None:
        self._card = card
        self._faults = faults
        self._max_loaded = max_loaded
        self._max_queue = max_queue
        self._num_parallel = num_parallel
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._residents: dict[str, Resident] = {}
        self._pending: deque[Call] = deque()
        self._once_loaded: set[str] = set()
        self._numbers = itertools.count(1)
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._load_pending, name="ollama-loads", daemon=True),
            threading.Thread(target=self._unload_expired, name="ollama-expiry", daemon=True),
        ]

    def start(self) -> None:
        """Start the two threads: one loads, one unloads what has expired."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both threads; every exchange must be gone by then."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(5.0)

    def die(self) -> None:
        """Lose every resident and waiting request at once, as when the server's process ends."""
        with self._changed:
            for resident in tuple(self._residents.values()):
                resident.dead = True
                self._card.free(resident.owner)
            self._residents.clear()
            self._pending.clear()
            self._changed.notify_all()

    def residents(self) -> list[tuple[Resident, int]]:
        """Return each resident and the time it expires (nanoseconds since 1970), the one that stays longest first."""
        with self._changed:
            now_ns = time.time_ns()
            listed = [
                # While it loads it has no such time yet; Ollama then counts from now.
                (r, r.expires_ns or expiry_ns(now_ns, self._card.real_seconds(r.keep_alive_s)))
                for r in self._residents.values()
            ]
        return sorted(listed, key=lambda entry: -(entry[1] // 1_000_000_000))

    def pending_count(self) -> int:
        """Return how many requests wait in the queue for a load, dead ones included."""
        with self._changed:
            return len(self._pending)

    def expire(self, name: str) -> None:
        """Unload the resident `name` as soon as no request uses it; does nothing if it is not loaded."""
        with self._changed:
            resident = self._residents.get(name)
            if resident is not None:
                self._expire(resident)

    @contextmanager
    def using(self, call: Call) -> Iterator[Resident]:
        """Hold a resident that suits `call` for the block, loading it first if need be.

        Raises: ServerBusy, LoadFailed, ClientGone.
        """
        call.exchange.on_gone(self._notify)
        resident = self._obtain(call)
        try:
            yield resident
        finally:
            with self._changed:
                self._release(resident)

    @contextmanager
    def turn(self, resident: Resident, call: Call) -> Iterator[None]:
        """Hold one of the runner's slots for the block; first come, first served.

        Raises: ClientGone.
        """
        with self._changed:
            resident.turns.append(call)
            try:
                self._changed.wait_for(
                    lambda: call.exchange.gone.is_set() or call in itertools.islice(resident.turns, resident.slots)
                )
                if call.exchange.gone.is_set():
                    raise ClientGone
            except BaseException:
                resident.turns.remove(call)
                self._changed.notify_all()
                raise
        try:
            yield
        finally:
            with self._changed:
                resident.turns.remove(call)
                self._changed.notify_all()

    def crash(self, resident: Resident) -> None:
        """Let a runner's process die: its memory is released, but Ollama lists it until it is requested or expires."""
        with self._changed:
            if not resident.dead:
                resident.dead = True
                self._card.free(resident.owner)
                self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # Under the lock, for the request's own thread

    def _obtain(self, call: Call) -> Resident:
        queued = False
        with self._changed:
            while True:
                if call.resident is not None:
                    return call.resident
                if call.failure is not None:
                    raise call.failure
                if call.exchange.gone.is_set():
                    raise ClientGone
                if not queued:
                    resident = self._residents.get(call.spec.tagged_name)
                    if resident is not None and self._suits(resident, call):
                        if not resident.loading:
                            return self._take(resident, call)
                    elif len(self._pending) >= self._max_queue:
                        raise ServerBusy(BUSY)
                    else:
                        queued = True
                        self._pending.append(call)
                        self._changed.notify_all()
                self._changed.wait()

    @staticmethod
    def _suits(resident: Resident, call: Call) -> bool:
        return not resident.dead and resident.options == call.options

    def _take(self, resident: Resident, call: Call) -> Resident:
        resident.users += 1
        resident.expires_at_s = FOREVER
        if call.keep_alive_s is not None:
            resident.keep_alive_s = call.keep_alive_s
        call.resident = resident
        return resident

    def _release(self, resident: Resident) -> None:
        resident.users -= 1
        if resident.users == 0:
            real_s = self._card.real_seconds(resident.keep_alive_s)
            resident.expires_at_s = time.monotonic() + real_s
            resident.expires_ns = expiry_ns(time.time_ns(), real_s)
        self._changed.notify_all()

    def _expire(self, resident: Resident) -> None:
        resident.keep_alive_s = 0.0
        resident.expires_ns = time.time_ns()
        if resident.users == 0:
            resident.expires_at_s = time.monotonic()
        self._changed.notify_all()

    # The unloading thread

    def _unload_expired(self) -> None:
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                idle = [r for r in self._residents.values() if r.users == 0 and not r.loading]
                for resident in idle:
                    if resident.expires_at_s <= now:
                        self._unload(resident)
                later = [r.expires_at_s for r in idle if now < r.expires_at_s < FOREVER]
                self._changed.wait(min(later) - now if later else None)

    def _unload(self, resident: Resident) -> None:
        del self._residents[resident.spec.tagged_name]
        slow = self._faults.take(("slow_unload",), resident.spec.name)
        self._card.free(resident.owner, delay_s=SLOW_UNLOAD_S if slow else None)
        self._changed.notify_all()

    # The loading thread

    def _load_pending(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or bool(self._pending))
                if self._stopping:
                    return
                call = self._pending.popleft()
                if not self._make_room(call):
                    continue
                try:
                    resident = self._begin_load(call)
                except LoadFailed as failure:
                    call.failure = failure
                    self._changed.notify_all()
                    continue
            if resident is not None:
                self._finish_load(call, resident)

    def _make_room(self, call: Call) -> bool:
        """Evict until `call`'s model may load; returns False if `call` needs no load any more."""
        while not (call.exchange.gone.is_set() or self._stopping):
            name = call.spec.tagged_name
            resident = self._residents.get(name)
            if resident is not None and self._suits(resident, call):
                self._take(resident, call)
                self._changed.notify_all()
                return False
            victim = resident or self._victim(call)
            if victim is None:
                return True
            while victim in self._residents.values() and not self._stopping:
                # A request that slipped in may have renewed its stay.
                if victim.users == 0 or victim.keep_alive_s > 0:
                    self._expire(victim)
                self._changed.wait()
            self._await_memory()
        return False

    def _await_memory(self) -> None:
        """Wait until evicted memory is released, at most 5 simulated seconds; only an eviction waits, an empty list does not."""
        limit = time.monotonic() + self._card.real_seconds(RECOVERY_LIMIT_S)
        while not self._stopping:
            left = min(self._card.returned_in_s, limit - time.monotonic())
            if left <= 0:
                return
            self._changed.wait(left)

    def _victim(self, call: Call) -> Resident | None:
        others = list(self._residents.values())
        room = self._card.total_bytes - self._card.reserved_bytes - sum(r.vram_bytes for r in others)
        if not others or (len(others) < self._max_loaded and self._needed_bytes(call) <= room):
            return None
        idle = [r for r in others if r.users == 0]
        return min(idle or others, key=lambda r: r.keep_alive_s)

    def _needed_bytes(self, call: Call) -> int:
        return call.spec.needed_bytes(call.options.num_ctx, call.spec.slots(self._num_parallel))

    def _begin_load(self, call: Call) -> Resident | None:
        spec, options = call.spec, call.options
        size = self._needed_bytes(call)
        wanted_layers = spec.layer_count if options.num_gpu < 0 else min(options.num_gpu, spec.layer_count)
        owner = f"{spec.tagged_name}#{next(self._numbers)}"
        while True:
            layers = min(wanted_layers, self._card.free_bytes * spec.layer_count // size)
            vram = size * layers // spec.layer_count
            try:
                self._card.allocate(owner, vram)
                break
            except OutOfMemory:
                continue  # another program was faster; decide again by what is left
            except GpuIsLost:
                raise LoadFailed(f"{_TERMINATED}CUDA error: no CUDA-capable device is detected") from None
        if layers < wanted_layers:
            self._card.note_spill()
        keep_alive_s = DEFAULT_KEEP_ALIVE_S if call.keep_alive_s is None else call.keep_alive_s
        resident = Resident(spec, options, owner, size, vram, keep_alive_s, slots=spec.slots(self._num_parallel))
        self._residents[spec.tagged_name] = resident
        return resident

    def _finish_load(self, call: Call, resident: Resident) -> None:
        known = resident.spec.tagged_name in self._once_loaded
        speed = PAGE_CACHE_BYTES_PER_S if known else DISK_BYTES_PER_S
        load_s = self._random.uniform(*START_S) + resident.size_bytes / speed
        fault = self._faults.take(("out_of_memory",), resident.spec.name)
        failure: Exception | None = None
        try:
            with self._card.computing(resident.owner, request=call.request, kind="load"):
                call.exchange.pause(self._card.real_seconds(load_s))
            if fault is not None:
                failure = LoadFailed(
                    f"{_TERMINATED}cudaMalloc failed: out of memory\n"
                    f"alloc_tensor_range: failed to allocate CUDA0 buffer of size {resident.size_bytes}"
                )
        except (ClientGone, GpuIsLost) as reason:
            failure = reason
        with self._changed:
            name = resident.spec.tagged_name
            resident.loading = False
            if failure is None and not resident.dead and self._residents.get(name) is resident:
                self._once_loaded.add(name)
                self._take(resident, call)
                if call.exchange.gone.is_set():
                    # Its thread may have left already; nothing else would release this use.
                    self._abandon(call, resident)
            else:
                if self._residents.get(name) is resident:
                    del self._residents[name]
                self._card.free(resident.owner)
                if isinstance(failure, GpuIsLost):
                    failure = LoadFailed(f"{_TERMINATED}CUDA error: unspecified launch failure")
                call.failure = failure or ClientGone()
            self._changed.notify_all()

    def _abandon(self, call: Call, resident: Resident) -> None:
        call.resident = None
        self._release(resident)
