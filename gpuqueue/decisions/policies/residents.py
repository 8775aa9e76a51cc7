"""Evicts or keeps models around an attempt on a device, and verifies that the attempt's memory was released.

Never decides when a job may start, and loads nothing itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpuqueue.contract.executor import AttemptInterrupted
from gpuqueue.contract.hookspecs import CleanUpAttemptDetails, PrepareAttemptDetails, hookimpl
from gpuqueue.decisions.keeping import in_the_way, kept, warm_s
from gpuqueue.domain.answers import CleanUp
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.errors import BackendUnavailable, ExecutionError, OutOfMemory, RunnerCrashed
from gpuqueue.domain.job import Lease
from gpuqueue.domain.models import full_name
from gpuqueue.domain.settings import BackendSettings, DeviceSettings
from gpuqueue.domain.units import format_duration, format_size
from gpuqueue.domain.view import Reservation
from gpuqueue.executors.ollama_client import QUERY_S, ConnectionRefused, OllamaClient
from gpuqueue.logs import tell

POLL_S = 0.02  # the first pause between two checks; each is longer than the one before
LONGEST_POLL_S = 0.1  # another job may be waiting for the memory
TOLERANCE_BYTES = 128 * 2**20  # what other programs may take while memory is released, at most a quarter of that memory
CONTEXT_BYTES = 2**30  # the most that a runner takes in addition to what its backend lists
NOISE_BYTES = 16 * 2**20  # a smaller rise of free memory is not a model's
logger = logging.getLogger("gpuqueue.worker")


class _Stopped(Exception):
    """`stopping()` turned true during a wait."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The device and the Ollama of one attempt, and how to ask them."""

    device: DeviceSettings
    backend: BackendSettings
    client: OllamaClient
    read_device: Callable[[], Reading]
    stopping: Callable[[], bool]
    deadline_s: float


@dataclass(slots=True)
class _Seen:
    """What Ollama last reported of its models; `gone` when nothing listens there any more."""

    residents: tuple[Resident, ...] | None = None
    gone: bool = False
    error: ExecutionError | None = None
    observed_bytes: int | None = None

    def loaded(self, names: frozenset[str]) -> list[Resident]:
        return [resident for resident in self.residents or () if full_name(resident.model) in names]


class _Others:
    """What happens on the device while memory is awaited: other memory may come back, and another job may start and take some."""

    def __init__(
        self,
        others: Callable[[], Sequence[Reservation]] = tuple,
        listed_bytes: Callable[[], int] = lambda: 0,
        listed_before_bytes: int = 0,
    ) -> None:
        self._others = others
        self._listed_bytes = listed_bytes
        self._listed_before_bytes = listed_before_bytes
        there = others()
        self._before = {(item.job_id, item.lease) for item in there}
        self._coming = {(item.job_id, item.lease) for item in there if item.unloaded}
        self.coming_bytes = sum(item.reserved_bytes for item in there if item.unloaded)

    def comes_back(self) -> bool:
        """Whether memory comes back that was awaited before."""
        if self._coming:
            self._coming &= {(item.job_id, item.lease) for item in self._others()}
        return bool(self._coming)

    def change_bytes(self, held_bytes: int) -> int:
        """Return how much more must be free than without the others, for all that was awaited before to be back too.

        A model that is loaded meanwhile takes nothing before it is listed. What was unloaded again may be back or not: it counts
        only as far as it cannot be taken for the memory that is awaited.
        """
        there = self._others()
        if not there:
            return self.coming_bytes
        unloaded_bytes = sum(
            item.reserved_bytes for item in there if item.unloaded and (item.job_id, item.lease) not in self._before
        )
        loaded_bytes = max(0, self._listed_bytes() - self._listed_before_bytes)
        return self.coming_bytes - loaded_bytes - min(unloaded_bytes, held_bytes // 4)


@dataclass(frozen=True, slots=True)
class _Stay:
    """A model kept for a job that is only expected: when Ollama unloads it, the free memory then, and the models beside it."""

    ends_s: float
    mark: int | None
    others: frozenset[str]


class Residents:
    """Frees memory for a job's model before an attempt, and releases the job's memory afterwards.

    `clock` and `sleep` are in seconds; `client` opens a backend.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        client: Callable[[BackendSettings], OllamaClient] = OllamaClient,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._client = client
        # Free memory before an attempt that had to load its model, by (job, lease): it must be reached again.
        self._free_before: dict[tuple[int, int], int] = {}
        self._stays: dict[tuple[str, str], _Stay] = {}  # by device and model

    @hookimpl
    def prepare_attempt(self, details: PrepareAttemptDetails) -> None:
        """Evict other models that no job uses while all are too many or leave too little of the budget; verify the release.

        Those that near jobs need are evicted last. A model whose stay has just ended by itself is waited for too.
        """
        lease, device = details.lease, details.device
        if details.backend is None:
            self._note_free(details)
            return
        place = self._place(device, details.backend, details.read_device, details.stopping)
        wanted = full_name(lease.model)
        try:
            residents = place.client.residents(timeout_s=self._query_s(place))
        except ConnectionRefused:
            if wanted:
                raise
            self._note_free(details)
            return  # a job without a model needs no Ollama, and an Ollama that is not running holds no memory
        mine = [resident for resident in residents if full_name(resident.model) == wanted]
        others = [resident for resident in residents if full_name(resident.model) != wanted]
        needed_bytes = _bytes(mine) or _reserved_bytes(lease)
        try:
            if not mine:
                self._await_ends(place, residents)
            evicted = in_the_way(details, others, needed_bytes)
            if evicted:
                began_s = self._clock()
                self._evict(place, evicted, needed_bytes=0 if mine else needed_bytes)
                _tell_evicted(lease, evicted, device, self._clock() - began_s)
        except _Stopped:
            raise AttemptInterrupted from None
        if not mine:
            self._note_free(details)

    def _await_ends(self, place: _Place, residents: Sequence[Resident]) -> None:
        """Wait for the memory of models that Ollama has just unloaded by itself; with others loaded since, it cannot be told."""
        listed = {full_name(resident.model) for resident in residents}
        for device, model in list(self._stays):
            if device != place.device.name or model in listed:
                continue
            stay = self._stays.pop((device, model), None)
            if stay is None or stay.mark is None or self._clock() > stay.ends_s + place.backend.release_s:
                continue
            if listed <= stay.others:
                self._memory_back(place, stay.mark)

    def _note_free(self, details: PrepareAttemptDetails) -> None:
        # Memory that a function takes in this process, such as CUDA's context, stays with the process after it ends.
        if not details.lease.model and not details.isolated:
            return
        free_bytes = details.read_device().free_bytes
        if free_bytes is not None and not details.memory_returns:  # else it is not known how much of it is back by now
            self._free_before[details.lease.job_id, details.lease.lease] = free_bytes

    @hookimpl
    def clean_up_attempt(self, details: CleanUpAttemptDetails) -> CleanUp | None:
        """Keep the job's model when it is still wanted; else unload it and wait until its memory is free again.

        Kept: when another running job uses it, while the device's `keep_warm_s` is above 0, when a job needs it that is next
        and fits beside the others that are, or with "auto" when one is expected before keeping it costs more than loading it.
        Verified: Ollama no longer lists the model (or nothing listens there), and the driver's free memory rose by what the
        model held, or to its value before the attempt. When neither is known, free memory has not risen for `settle_s`.
        Without a driver only `settle_s` passes, and `detail` says so.
        """
        with_model = details.backend is not None and details.lease.model
        if not with_model and not details.isolated:
            return None
        began_s = self._clock()
        place = self._place(details.device, details.backend or BackendSettings(), details.read_device, details.stopping)
        seen = _Seen()
        try:
            verified, detail = self._clean_up(place, details, seen) if with_model else self._process_gone(place, details)
        except _Stopped:
            what = details.lease.model or "the job's process"
            verified, detail = False, f"interrupted while waiting for the memory of {what} on {details.device.name}"
        return CleanUp(
            verified,
            detail,
            waited_s=self._clock() - began_s,
            residents=seen.residents or (),
            observed_bytes=seen.observed_bytes,
        )

    def _clean_up(self, place: _Place, details: CleanUpAttemptDetails, seen: _Seen) -> tuple[bool, str]:
        lease, backend = details.lease, place.backend
        free_before_attempt = self._free_before.pop((lease.job_id, lease.lease), None)
        names = frozenset({full_name(lease.model)})
        self._stays.pop((place.device.name, full_name(lease.model)), None)
        free_bytes: int | None = None

        def looked() -> bool:
            nonlocal free_bytes
            # Read first: a model that is listed afterwards still held its memory at this time.
            free_bytes = place.read_device().free_bytes
            return self._look(place, seen)

        if not self._until(looked, place):
            return False, f"Ollama did not list its loaded models within {format_duration(backend.release_s)}: {seen.error}"
        mine = [] if details.is_unloaded else seen.loaded(names)  # another job may have loaded it since
        seen.observed_bytes = _observed(mine, free_before_attempt, free_bytes)
        if details.shared_with:
            jobs = ", ".join(f"job {job_id}" for job_id in details.shared_with)
            return True, f"{lease.model} stays loaded on {place.device.name}: in use by {jobs}"
        if mine and not details.orphaned:
            why = kept(details)
            if why is not None:
                if warm_s(details):
                    there = frozenset(full_name(item.model) for item in seen.residents or ()) - names
                    stay = _Stay(self._clock() + warm_s(details), _mark(free_bytes, _bytes(mine)), there)
                    self._stays[place.device.name, full_name(lease.model)] = stay
                return True, f"{lease.model} stays loaded on {place.device.name}{why}"
        if mine and not self._unload(place, mine, seen):
            why = f": {seen.error}" if seen.error else "; a request may still be using it"
            return False, f"{lease.model} is still loaded after {format_duration(backend.release_s)}{why}"
        others = _Others(  # before another job may start
            details.others,
            lambda: _bytes(seen.residents or ()) if self._look(place, seen) else 0,
            _bytes(seen.residents or ()),
        )
        details.unloaded(seen.residents or (), seen.observed_bytes or 0)
        held_bytes = _bytes(mine)
        margin_bytes = min(TOLERANCE_BYTES, (held_bytes or _reserved_bytes(lease)) // 4)
        own_mark = _mark(free_bytes, held_bytes) if mine else None
        marks = [] if own_mark is None else [own_mark]
        if free_before_attempt is not None:
            marks.append(free_before_attempt - margin_bytes)
        where = f"{lease.model} is not loaded" + (f" (nothing listens at {place.client.shown_url})" if seen.gone else "")
        verified, detail = self._memory_back(place, min(marks, default=None), others, held_bytes)
        return verified, f"{where}; {detail}"

    def _process_gone(self, place: _Place, details: CleanUpAttemptDetails) -> tuple[bool, str]:
        lease = details.lease
        free_before = self._free_before.pop((lease.job_id, lease.lease), None)
        if free_before is None and place.read_device().free_bytes is None:
            return True, f"the job's process has ended; its memory is unverified: no driver can read {place.device.name}"
        margin_bytes = min(TOLERANCE_BYTES, _reserved_bytes(lease) // 4)
        verified, detail = self._memory_back(place, None if free_before is None else free_before - margin_bytes)
        return verified, f"the job's process has ended; {detail}"

    def _evict(self, place: _Place, others: Sequence[Resident], *, needed_bytes: int) -> None:
        names = ", ".join(resident.model for resident in others)
        free_bytes = place.read_device().free_bytes
        seen = _Seen()
        if not self._unload(place, others, seen):
            if isinstance(seen.error, BackendUnavailable):
                raise seen.error
            raise RunnerCrashed(
                f"{names} could not be unloaded from {place.device.name} within {format_duration(place.backend.release_s)}: "
                f"{seen.error or 'another program may be using it, or its runner hangs; check `ollama ps`'}"
            )
        if seen.gone and seen.error is not None:
            raise seen.error
        held_bytes = _bytes(others)
        verified, detail = self._memory_back(place, _mark(free_bytes, held_bytes))
        if verified:
            return
        free_bytes = place.read_device().free_bytes
        if not needed_bytes or free_bytes is None or free_bytes < needed_bytes:
            raise OutOfMemory(f"{names} was unloaded from {place.device.name}, but {detail}. Check nvidia-smi")

    def _unload(self, place: _Place, residents: Sequence[Resident], seen: _Seen) -> bool:
        """Request to unload each, and wait until Ollama lists none of them; False when that took too long."""
        names = frozenset(full_name(resident.model) for resident in residents)
        to_ask = [resident.model for resident in residents]

        def unloaded() -> bool:
            try:
                while to_ask:
                    place.client.unload(to_ask[-1], timeout_s=self._query_s(place))
                    to_ask.pop()
            except ConnectionRefused as error:
                seen.residents, seen.gone, seen.error = (), True, error
                return True
            except ExecutionError as error:
                seen.error = error
                return False
            return self._look(place, seen) and not seen.loaded(names)

        return self._until(unloaded, place)

    def _look(self, place: _Place, seen: _Seen) -> bool:
        """Ask Ollama which models are loaded; False when it did not answer."""
        try:
            seen.residents, seen.error = place.client.residents(timeout_s=self._query_s(place)), None
        except ConnectionRefused as error:
            seen.residents, seen.gone, seen.error = (), True, error
        except ExecutionError as error:
            seen.error = error
            return False
        return True

    def _memory_back(
        self, place: _Place, mark: int | None, others: _Others | None = None, held_bytes: int = 0
    ) -> tuple[bool, str]:
        """Wait until free memory has reached `mark`, or without one has stopped rising; return the result in words too."""
        others = others or _Others()
        settle_s = place.backend.settle_s
        settled_at_s = self._clock() + settle_s
        reading = place.read_device()
        highest = reading.free_bytes or 0

        def back() -> bool:
            nonlocal reading, highest, settled_at_s
            reading = place.read_device()
            if reading.lost is not None:
                return False
            if reading.free_bytes is not None and mark is not None:
                if reading.free_bytes >= mark + others.change_bytes(held_bytes):
                    return True
                if not others.coming_bytes:
                    return False
                # What the others reserved may be more than they had: then only free memory that rises no more can tell.
            if others.comes_back():
                settled_at_s = self._clock() + settle_s
                return False
            if reading.free_bytes is not None and reading.free_bytes > highest + NOISE_BYTES:
                highest, settled_at_s = reading.free_bytes, self._clock() + settle_s
            return self._clock() >= settled_at_s

        is_back = self._until(back, place, deadline_s=max(place.deadline_s, self._clock() + 2 * settle_s))
        if reading.lost is not None:
            return False, f"its memory is unverified: {place.device.name} cannot be read: {reading.lost}"
        if reading.free_bytes is None:
            return (
                is_back,
                f"its memory is unverified: no driver can read {place.device.name}; waited {format_duration(settle_s)}",
            )
        free = f"{place.device.name} has {format_size(reading.free_bytes)} free"
        if not is_back:
            awaited = "still rising" if mark is None else f"expected {format_size(mark)}"
            return False, f"its memory was not released within {format_duration(place.backend.release_s)}: {free}, {awaited}"
        return True, free if mark is not None else f"{free}; free memory has stopped rising"

    def _until(self, ready: Callable[[], bool], place: _Place, deadline_s: float | None = None) -> bool:
        """Check until it is ready; False at the deadline. Checks at least once. Raises: _Stopped."""
        ends_s = place.deadline_s if deadline_s is None else deadline_s
        pause_s = POLL_S
        while not ready():
            if place.stopping():
                raise _Stopped
            left_s = ends_s - self._clock()
            if left_s <= 0:
                return False
            self._sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.2, LONGEST_POLL_S)
        return True

    def _query_s(self, place: _Place) -> float:
        return max(0.1, min(QUERY_S, place.deadline_s - self._clock()))

    def _place(
        self,
        device: DeviceSettings,
        backend: BackendSettings,
        read_device: Callable[[], Reading],
        stopping: Callable[[], bool],
    ) -> _Place:
        deadline_s = self._clock() + backend.release_s
        return _Place(device, backend, self._client(backend), read_device, stopping, deadline_s)


def _mark(free_bytes: int | None, held_bytes: int) -> int | None:
    """Return the free memory that must be reached once models that held so much are gone."""
    return None if free_bytes is None else free_bytes + held_bytes - min(TOLERANCE_BYTES, held_bytes // 4)


def _observed(mine: Sequence[Resident], free_before: int | None, free_now: int | None) -> int | None:
    """Return a loaded model's memory: what its backend lists, or more where the driver saw more (its CUDA context)."""
    if not mine:
        return None
    listed_bytes = sum(resident.size_bytes for resident in mine)  # for a spilled model, what it would have needed
    if free_before is None or free_now is None or listed_bytes > _bytes(mine):
        return listed_bytes
    taken_bytes = free_before - free_now
    # A larger difference is not the model's: another program started or ended meanwhile.
    return max(listed_bytes, taken_bytes) if taken_bytes <= listed_bytes + CONTEXT_BYTES else listed_bytes


def _tell_evicted(lease: Lease, others: Sequence[Resident], device: DeviceSettings, evict_s: float) -> None:
    models = [resident.model for resident in others]
    job = f"job {lease.job_id} of {lease.queue}"
    tell(
        logger,
        logging.INFO,
        "model_evicted",
        f"{', '.join(models)} unloaded from {device.name} in {format_duration(evict_s)} for {job} (lease {lease.lease})",
        job=lease.job_id,
        lease=lease.lease,
        queue=lease.queue,
        task=lease.task,
        models=models,
        device=device.name,
        evict_s=round(evict_s, 6),
    )


def _bytes(residents: Sequence[Resident]) -> int:
    return sum(resident.vram_bytes for resident in residents)


def _reserved_bytes(lease: Lease) -> int:
    return 0 if lease.placement is None else lease.placement.reserved_bytes
