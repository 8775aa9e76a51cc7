"""Which models stay loaded around an attempt, and when their memory counts as given back.

First on a clock that only the policy's own waits move, with a small server in Ollama's place; then on the simulators.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from gpuqueue.contract.executor import AttemptInterrupted
from gpuqueue.contract.hookspecs import CleanUpAttemptDetails, PrepareAttemptDetails
from gpuqueue.decisions.policies.residents import Residents
from gpuqueue.devices.nvml import NvmlDevice
from gpuqueue.domain.answers import CleanUp, Placement
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.errors import BackendUnavailable, OutOfMemory, RunnerCrashed
from gpuqueue.domain.job import Lease
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings
from gpuqueue.domain.view import Reservation
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.views import reservation
from gpuqueue.testing.waiting import DEADLINE_S

GB = 10**9
GEMMA, NOMIC = "gemma4:e4b", "nomic-embed-text:latest"
SIZES = {GEMMA: 4_500_000_000, NOMIC: 500_000_000, "other:latest": 250_000_000, "third:latest": 250_000_000}
MODELS = {name: ModelSettings(name, size) for name, size in SIZES.items()}
CONTEXT_BYTES = 457 * 2**20  # a runner holds more than Ollama says


SETTINGS = DeviceSettings("gpu0", budget_bytes=5 * GB, margin_bytes=3 * GB)


def a_lease(model: str, keep_warm_s: float = 0.0) -> Lease:
    return Lease(
        job_id=7,
        lease=3,
        queue="ai-batch",
        task="ollama.generate",
        attempt=1,
        max_attempts=3,
        arguments={},
        timeout_s=None,
        started_at=datetime(2026, 3, 2, tzinfo=UTC),
        model=model,
        placement=Placement("gpu0", SIZES.get(model, 500_000_000), keep_warm_s),
    )


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds


class Ollama:
    """Loads onto the card what a test says, and unloads as `/api/generate` asks, `unload_s` later on the clock."""

    def __init__(self, card: SimulatedCard, clock: Clock) -> None:
        self.card = card
        self.clock = clock
        self.unload_s: float | None = 0.0  # None: never
        self.hangs = False
        self.asked: list[str] = []
        self._leaving_at_s: dict[str, float] = {}
        self._loaded: list[str] = []
        self._held = threading.Event()
        ollama = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listed = [{"name": name, "size": SIZES[name], "size_vram": SIZES[name]} for name in ollama.loaded()]
                self._answer({"models": listed})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert body["keep_alive"] == 0
                ollama.unload(body["model"])
                self._answer({"done_reason": "unload"})

            def _answer(self, body: Any) -> None:
                if ollama.hangs:
                    ollama._held.wait(DEADLINE_S)
                    return
                text = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def load(self, name: str) -> None:
        self.card.allocate(name, SIZES[name] + CONTEXT_BYTES)
        self._loaded.append(name)

    def unload(self, name: str) -> None:
        self.asked.append(name)
        if self.unload_s is not None:
            self._leaving_at_s.setdefault(name, self.clock() + self.unload_s)

    def loaded(self) -> list[str]:
        for name, at_s in list(self._leaving_at_s.items()):
            if self.clock() >= at_s:
                del self._leaving_at_s[name]
                if name in self._loaded:
                    self._loaded.remove(name)
                    self.card.free(name)
        return list(self._loaded)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._held.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class Room:
    """A card, an Ollama and the policy, with everything that an attempt's details have."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.card = SimulatedCard(total_bytes=8 * GB, clock=self.clock, release_delay_s=(1.0, 1.0))
        self.empty_bytes = self.card.free_bytes
        self.ollama = Ollama(self.card, self.clock)
        self.policy = Residents(self.clock, self.clock.sleep)
        self.device = SETTINGS
        self.backend: BackendSettings | None = BackendSettings(url=self.ollama.url)
        self.near: list[str] = []
        self.next_use_s: float | None = None
        self.stay_s = 0.0  # what its placement says
        self.stopping: Callable[[], bool] = lambda: False
        self.has_driver = True

    def read(self) -> Reading:
        at = datetime(2026, 3, 2, tzinfo=UTC)
        if not self.has_driver:
            return Reading(at)
        if self.card.lost:
            return Reading(at, lost="GPU is lost")
        return Reading(at, total_bytes=self.card.total_bytes, free_bytes=self.card.free_bytes)

    def prepare(self, model: str, *, isolated: bool = False, in_use: frozenset[str] = frozenset()) -> None:
        self.policy.prepare_attempt(
            PrepareAttemptDetails(
                a_lease(model),
                self.device,
                MODELS,
                self.backend,
                self.read,
                self.stopping,
                isolated,
                in_use,
                next_models=lambda: self.near,
            )
        )

    def clean_up(self, model: str = GEMMA, *, orphaned: bool = False, shared_with: tuple[int, ...] = (), **more: Any) -> CleanUp:
        found = self.ask_to_clean_up(model, orphaned=orphaned, shared_with=shared_with, **more)
        assert found is not None
        return found

    def ask_to_clean_up(
        self, model: str, *, orphaned: bool = False, isolated: bool = False, shared_with: tuple[int, ...] = (), **more: Any
    ) -> CleanUp | None:
        return self.policy.clean_up_attempt(
            CleanUpAttemptDetails(
                a_lease(model, self.stay_s),
                self.device,
                self.backend,
                self.read,
                self.stopping,
                orphaned,
                isolated,
                shared_with,
                next_models=lambda: self.near,
                next_use_s=lambda: self.next_use_s,
                **more,
            )
        )

    def settings(self, **changes: float) -> None:
        self.backend = BackendSettings(url=self.ollama.url, **changes)

    def keep_warm(self, seconds: float) -> None:
        self.device = DeviceSettings("gpu0", budget_bytes=5 * GB, keep_warm_s=seconds)

    def allow(self, max_models: int, budget_bytes: int = 5 * GB) -> None:
        self.device = DeviceSettings("gpu0", budget_bytes=budget_bytes, max_models=max_models)


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.ollama.stop()


# After an attempt


@pytest.mark.parametrize("model", [GEMMA, NOMIC, "nomic-embed-text"])
def test_a_clean_up_is_verified_only_when_the_memory_is_really_back(room: Room, model: str) -> None:
    loaded = NOMIC if model != GEMMA else GEMMA
    room.ollama.load(loaded)

    found = room.clean_up(model)

    assert found.verified
    assert room.ollama.asked == [loaded]
    assert room.card.free_bytes == room.empty_bytes
    assert found.waited_s == pytest.approx(1.0, abs=0.25)
    assert found.residents == ()
    assert found.detail == f"{model} is not loaded; gpu0 has 7.8 GB free"


def test_the_waits_grow_and_never_spin(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.ollama.unload_s = 5.0

    room.clean_up()

    assert room.clock.sleeps[0] == 0.02
    assert all(0 < pause_s <= 0.1 for pause_s in room.clock.sleeps)
    assert len(room.clock.sleeps) < 80


def test_only_the_jobs_own_model_is_unloaded(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.ollama.load(NOMIC)

    found = room.clean_up(NOMIC)

    assert (found.verified, [resident.model for resident in found.residents]) == (True, [GEMMA])
    assert room.ollama.asked == [NOMIC]
    assert room.card.returning_bytes == 0


def test_a_model_that_is_kept_warm_is_not_unloaded(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.keep_warm(600)

    found = room.clean_up()

    assert found.verified
    assert found.detail == "gemma4:e4b stays loaded on gpu0 for 10m (keep_warm)"
    assert [resident.model for resident in found.residents] == [GEMMA]
    assert room.ollama.asked == []


def test_a_model_that_the_next_job_needs_is_not_unloaded_whatever_name_it_goes_by(room: Room) -> None:
    room.ollama.load(NOMIC)
    room.near = ["other:latest", "nomic-embed-text"]

    found = room.clean_up(NOMIC)

    assert (found.verified, found.detail) == (True, f"{NOMIC} stays loaded on gpu0: a waiting job needs it too")
    assert room.ollama.asked == []


def automatic(room: Room, *, stay_s: float, next_use_s: float | None) -> None:
    room.device = DeviceSettings("gpu0", budget_bytes=5 * GB, keep_warm_s="auto")
    room.stay_s, room.next_use_s = stay_s, next_use_s


def test_a_model_for_which_a_job_is_expected_soon_enough_is_not_unloaded(room: Room) -> None:
    room.ollama.load(GEMMA)
    automatic(room, stay_s=30.0, next_use_s=12.0)

    found = room.clean_up()

    expected = "the next job for it is expected in about 12 s"
    assert found.detail == f"gemma4:e4b stays loaded on gpu0 for at most 30 s: {expected} (keep_warm)"
    assert (found.verified, room.ollama.asked) == (True, [])


@pytest.mark.parametrize(
    ("stay_s", "next_use_s"), [(30.0, 31.0), (30.0, None), (0.0, 1.0)], ids=["too late", "nothing expected", "load not known"]
)
def test_a_model_is_unloaded_at_once_when_no_job_is_expected_in_time(room: Room, stay_s: float, next_use_s: float | None) -> None:
    room.ollama.load(GEMMA)
    automatic(room, stay_s=stay_s, next_use_s=next_use_s)

    assert room.clean_up().verified
    assert room.ollama.asked == [GEMMA]
    assert room.card.free_bytes == room.empty_bytes


def test_a_model_that_is_only_expected_to_be_needed_is_evicted_at_once_for_a_job_that_is_there(room: Room) -> None:
    room.ollama.load(GEMMA)
    automatic(room, stay_s=30.0, next_use_s=12.0)
    room.clean_up()

    room.prepare(NOMIC)

    assert room.ollama.asked == [GEMMA]
    assert room.card.free_bytes == room.empty_bytes


def test_the_memory_of_a_model_that_has_just_left_by_itself_is_waited_for(room: Room) -> None:
    room.ollama.load(GEMMA)
    automatic(room, stay_s=30.0, next_use_s=12.0)
    room.clean_up()
    room.clock.sleep(30.0)
    room.ollama.unload_s = 0.0
    room.ollama.unload(GEMMA)
    room.ollama.loaded()
    assert room.card.free_bytes < room.empty_bytes, "the driver gives the memory back later"

    room.prepare(NOMIC)

    assert room.card.free_bytes == room.empty_bytes


def test_a_model_that_left_long_ago_is_not_waited_for(room: Room) -> None:
    room.ollama.load(GEMMA)
    automatic(room, stay_s=30.0, next_use_s=12.0)
    room.clean_up()
    room.ollama.unload_s = 0.0
    room.ollama.unload(GEMMA)
    room.ollama.loaded()
    room.clock.sleep(60.0)
    room.card.allocate("another program", 5 * GB)
    began_s = room.clock()

    room.prepare(NOMIC)

    assert room.clock() == began_s


def test_as_few_models_as_possible_are_evicted_and_those_that_near_jobs_need_last(room: Room) -> None:
    room.allow(max_models=3)
    for name in (NOMIC, "other:latest", "third:latest"):
        room.ollama.load(name)
    room.near = ["third", "nomic-embed-text"]

    room.prepare("fourth:latest")

    assert room.ollama.asked == ["other:latest"]
    room.allow(max_models=2)
    room.prepare("fourth:latest")
    assert room.ollama.asked == ["other:latest", NOMIC]


@pytest.mark.parametrize("orphaned", [False, True])
def test_a_model_that_another_running_job_uses_is_neither_unloaded_nor_waited_for(room: Room, orphaned: bool) -> None:
    room.ollama.load(GEMMA)

    found = room.clean_up(orphaned=orphaned, shared_with=(8, 9))

    assert (found.verified, found.waited_s) == (True, 0)
    assert found.detail == "gemma4:e4b stays loaded on gpu0: in use by job 8, job 9"
    assert [resident.model for resident in found.residents] == [GEMMA]
    assert room.ollama.asked == []

    assert room.clean_up().verified, "the last one unloads it"
    assert room.ollama.asked == [GEMMA]


def test_a_model_that_another_job_uses_is_not_evicted(room: Room) -> None:
    room.allow(max_models=2, budget_bytes=5 * GB)
    room.ollama.load(NOMIC)
    room.ollama.load("other:latest")

    room.prepare(GEMMA, in_use=frozenset({"nomic-embed-text"}))

    assert room.ollama.asked == ["other:latest"]


@pytest.mark.parametrize("next_model", ["", NOMIC])
def test_a_next_job_with_another_model_or_none_keeps_nothing(room: Room, next_model: str) -> None:
    room.ollama.load(GEMMA)
    room.near = [next_model] if next_model else []

    room.clean_up()

    assert room.ollama.asked == [GEMMA]


def test_a_slow_unload_is_waited_for(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.ollama.unload_s = 8.0

    found = room.clean_up()

    assert found.verified
    assert found.waited_s == pytest.approx(9.0, abs=0.5)
    assert room.card.free_bytes == room.empty_bytes


@pytest.mark.parametrize("orphaned", [False, True])
def test_a_model_that_stays_in_use_is_reported_after_release_s(room: Room, orphaned: bool) -> None:
    room.ollama.load(GEMMA)
    room.ollama.unload_s = None

    found = room.clean_up(orphaned=orphaned)

    assert not found.verified
    assert "gemma4:e4b is still loaded after 15 s" in found.detail
    assert found.waited_s == pytest.approx(15.0)
    assert [resident.model for resident in found.residents] == [GEMMA]


def test_a_dead_workers_model_is_unloaded_even_where_models_are_kept_warm(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.keep_warm(600)
    room.near = [GEMMA]

    assert room.clean_up(orphaned=True).verified
    assert room.ollama.asked == [GEMMA]
    assert room.card.free_bytes == room.empty_bytes


def test_memory_that_does_not_come_back_is_reported_with_what_is_missing(room: Room) -> None:
    room.card.release_delay_s = (60.0, 60.0)
    room.ollama.load(GEMMA)

    found = room.clean_up()

    assert not found.verified
    assert "was not released within 15 s" in found.detail
    assert "expected " in found.detail


def test_a_little_memory_that_another_program_takes_meanwhile_does_not_matter(room: Room) -> None:
    room.ollama.load(GEMMA)
    taken = False

    def take_once() -> bool:
        nonlocal taken
        if not taken:
            taken = True
            room.card.take(100 * 2**20)
        return False

    room.stopping = take_once

    assert room.clean_up().verified
    assert taken


def test_another_job_may_start_once_the_model_is_unloaded_and_what_it_takes_is_not_missed(room: Room) -> None:
    room.ollama.load(GEMMA)
    started: list[Reservation] = []

    def start(residents: tuple[Resident, ...], held_bytes: int) -> None:
        assert (residents, held_bytes) == ((), SIZES[GEMMA])
        assert room.card.free_bytes < room.empty_bytes, "its memory is not back yet"
        room.ollama.load(NOMIC)
        started.append(replace(reservation(8, model=NOMIC, bytes=SIZES[NOMIC]), task="ollama.embed"))

    assert room.clean_up(unloaded=start, others=lambda: started).verified
    assert 1001.0 <= room.clock() < 1001.3
    assert room.card.free_bytes == room.empty_bytes - SIZES[NOMIC] - CONTEXT_BYTES


def test_a_second_try_leaves_the_model_to_the_job_that_has_loaded_it_since(room: Room) -> None:
    room.ollama.load(NOMIC)
    assert room.clean_up(NOMIC, is_unloaded=True).verified
    assert room.ollama.asked == []


@pytest.mark.parametrize("reserved_bytes", [SIZES[GEMMA] + CONTEXT_BYTES, 5 * GB], ids=["as it was", "more than it was"])
def test_memory_of_another_model_that_comes_back_is_not_taken_for_its_own(room: Room, reserved_bytes: int) -> None:
    room.ollama.load(GEMMA)
    room.ollama.load(NOMIC)
    room.ollama.unload(GEMMA)
    room.ollama.loaded()
    room.clock.sleep(0.5)  # it is back half a second from now, half a second before the other's
    leaving = replace(reservation(8, model=GEMMA, bytes=reserved_bytes, running=False), unloaded=True)
    found = room.clean_up(NOMIC, others=lambda: [leaving] if room.clock() < 1001.1 else [])
    assert found.verified
    assert room.card.free_bytes == room.empty_bytes


def test_when_another_program_took_the_memory_the_next_try_finds_that_it_is_not_coming_back(room: Room) -> None:
    room.ollama.load(GEMMA)
    taken = False

    def take_once() -> bool:
        nonlocal taken
        if not taken:
            taken = True
            room.card.take(2 * GB)
        return False

    room.stopping = take_once
    assert not room.clean_up().verified

    found = room.clean_up()

    assert found.verified
    assert "free memory has stopped rising" in found.detail
    assert found.waited_s == pytest.approx(2.0, abs=0.3)


def test_without_a_driver_the_memory_is_given_a_while_and_said_to_be_unverified(room: Room) -> None:
    room.has_driver = False
    room.ollama.load(GEMMA)

    found = room.clean_up()

    assert found.verified
    assert "its memory is unverified: no driver can read gpu0; waited 2 s" in found.detail
    assert found.waited_s == pytest.approx(2.0, abs=0.25)


def test_a_card_that_is_lost_is_not_verified(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.card.lost = True

    found = room.clean_up()

    assert not found.verified
    assert "gpu0 cannot be read: GPU is lost" in found.detail


def test_a_card_that_comes_back_is_verified_once_its_memory_has_stopped_rising(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.card.lost = True

    def heal() -> bool:
        room.card.lost = room.clock() < 1005
        return False

    room.stopping = heal

    assert room.clean_up().verified
    assert room.card.free_bytes == room.empty_bytes


def test_a_server_that_is_gone_took_its_models_with_it_and_the_driver_says_when(room: Room) -> None:
    room.prepare(GEMMA)
    room.ollama.load(GEMMA)
    room.ollama.stop()
    room.card.free(GEMMA)

    found = room.clean_up()

    assert found.verified
    assert f"nothing listens at {room.ollama.url}" in found.detail
    assert room.card.free_bytes == room.empty_bytes


def test_a_server_that_is_gone_where_there_is_no_driver_is_given_a_while(room: Room) -> None:
    room.has_driver = False
    room.ollama.stop()

    found = room.clean_up()

    assert found.verified
    assert "nothing listens" in found.detail
    assert "its memory is unverified" in found.detail


def test_a_server_that_does_not_answer_is_not_taken_for_one_that_is_gone(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.ollama.hangs = True
    room.settings(release_s=0.1)

    found = room.clean_up()

    assert not found.verified
    assert "did not list its loaded models within 100 ms" in found.detail


def test_a_load_that_was_cancelled_is_verified_as_soon_as_memory_is_what_it_was_before(room: Room) -> None:
    room.prepare(GEMMA)
    room.card.allocate("loading", 2 * GB)
    room.card.free("loading")

    found = room.clean_up()

    assert found.verified
    assert found.waited_s == pytest.approx(1.0, abs=0.25)
    assert room.ollama.asked == []
    assert room.card.free_bytes == room.empty_bytes


def test_an_attempt_that_loaded_nothing_is_cleaned_up_at_once(room: Room) -> None:
    room.prepare(GEMMA)

    assert room.clean_up().waited_s == 0


def test_a_dead_workers_load_is_verified_when_memory_has_stopped_rising(room: Room) -> None:
    room.card.allocate("loading", 2 * GB)
    room.card.free("loading")

    found = room.clean_up(orphaned=True)

    assert found.verified
    assert room.card.free_bytes == room.empty_bytes
    assert found.waited_s == pytest.approx(3.0, abs=0.5)


def test_a_worker_that_stops_has_the_model_unloaded_and_does_not_wait(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.stopping = lambda: True

    found = room.clean_up()

    assert not found.verified
    assert "interrupted while waiting" in found.detail
    assert room.ollama.asked == [GEMMA]
    assert room.clock.sleeps == []


def test_a_job_without_a_model_or_without_a_backend_has_nothing_to_give_back(room: Room) -> None:
    room.ollama.load(GEMMA)
    assert room.ask_to_clean_up("") is None
    room.backend = None
    assert room.ask_to_clean_up(GEMMA) is None
    assert room.ollama.asked == []


@pytest.mark.parametrize("backend", [True, False], ids=["beside an Ollama", "without one"])
def test_the_memory_of_an_isolated_task_is_waited_for(room: Room, backend: bool) -> None:
    if not backend:
        room.backend = None
    room.prepare("", isolated=True)
    room.card.allocate("its process", 2 * GB)
    room.card.free("its process")

    found = room.ask_to_clean_up("", isolated=True)

    assert found is not None and found.verified
    assert found.waited_s > 0.5
    assert room.card.free_bytes == room.empty_bytes


def test_what_an_isolated_task_took_and_somebody_else_has_now_is_not_waited_for_for_ever(room: Room) -> None:
    room.prepare("", isolated=True)
    room.card.take(2 * GB)
    first = room.ask_to_clean_up("", isolated=True)
    assert first is not None and not first.verified
    assert "the job's process has ended; its memory was not released within 15 s" in first.detail
    again = room.ask_to_clean_up("", isolated=True)
    assert again is not None and again.verified


def test_without_a_driver_an_isolated_task_is_cleaned_up_when_its_process_has_ended(room: Room) -> None:
    room.has_driver = False
    room.prepare("", isolated=True)
    found = room.ask_to_clean_up("", isolated=True)
    assert found is not None and found.verified and found.waited_s == 0


# Before an attempt


def test_the_other_model_is_evicted_and_its_memory_is_back_before_the_job_starts(room: Room) -> None:
    room.ollama.load(GEMMA)

    room.prepare("nomic-embed-text")

    assert room.ollama.asked == [GEMMA]
    assert room.card.free_bytes == room.empty_bytes


@pytest.mark.parametrize("model", [NOMIC, "nomic-embed-text", "NOMIC-embed-text"])
def test_the_jobs_own_model_is_left_where_it_is(room: Room, model: str) -> None:
    room.ollama.load(NOMIC)

    room.prepare(model)

    assert room.ollama.asked == []
    assert room.clock.sleeps == []


def test_several_models_stay_when_they_are_allowed_and_fit(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.allow(2)

    room.prepare(NOMIC)

    assert room.ollama.asked == []


def test_several_models_do_not_stay_beyond_the_budget(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.allow(2, budget_bytes=4_900_000_000)

    room.prepare(NOMIC)

    assert room.ollama.asked == [GEMMA]


def test_a_job_without_a_model_has_those_evicted_that_leave_it_no_room(room: Room) -> None:
    room.ollama.load(GEMMA)

    room.prepare("")
    assert room.ollama.asked == []
    room.allow(1, budget_bytes=4_900_000_000)
    room.prepare("")
    assert room.ollama.asked == [GEMMA]


def test_without_a_driver_an_eviction_waits_for_settle_s(room: Room) -> None:
    room.has_driver = False
    room.ollama.load(GEMMA)

    room.prepare(NOMIC)

    assert sum(room.clock.sleeps) == pytest.approx(2.0, abs=0.25)


def test_a_model_that_does_not_leave_fails_the_attempt_and_says_so(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.ollama.unload_s = None

    with pytest.raises(
        RunnerCrashed, match=r"gemma4:e4b could not be unloaded from gpu0 within 15 s: another program may be using it"
    ):
        room.prepare(NOMIC)


def test_evicted_memory_that_does_not_come_back_fails_the_attempt_of_a_job_that_needs_it(room: Room) -> None:
    room.card.release_delay_s = (60.0, 60.0)
    room.ollama.load(NOMIC)
    room.card.take(3 * GB)

    with pytest.raises(OutOfMemory, match=r"was unloaded from gpu0, but its memory was not released within 15 s"):
        room.prepare(GEMMA)


def test_evicted_memory_that_does_not_come_back_does_not_matter_to_a_job_that_fits_beside_it(room: Room) -> None:
    room.card.release_delay_s = (60.0, 60.0)
    room.ollama.load(GEMMA)

    room.prepare(NOMIC)

    assert sum(room.clock.sleeps) == pytest.approx(15.0)


def test_a_cancelled_attempt_stops_waiting_for_room(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.ollama.unload_s = None
    room.stopping = lambda: room.clock.now_s >= 1001

    with pytest.raises(AttemptInterrupted):
        room.prepare(NOMIC)

    assert room.clock.now_s < 1002


def test_without_an_ollama_a_job_that_needs_it_is_told_that_it_is_away_and_others_go_on(room: Room) -> None:
    room.ollama.stop()

    with pytest.raises(BackendUnavailable):
        room.prepare(GEMMA)
    room.prepare("")
    room.backend = None
    room.prepare(GEMMA)


def test_an_ollama_that_hangs_is_away(room: Room) -> None:
    room.ollama.load(GEMMA)
    room.ollama.hangs = True
    room.settings(release_s=0.1)

    with pytest.raises(BackendUnavailable, match="did not answer"):
        room.prepare(NOMIC)


# On a simulated Ollama and NVML, by the real clock: a simulated second lasts 20 ms


@dataclass(frozen=True)
class Machine:
    ollama: OllamaSimulator
    card: SimulatedCard
    device: NvmlDevice
    policy: Residents
    empty_bytes: int

    def backend(self, **changes: float) -> BackendSettings:
        return replace(BackendSettings(url=self.ollama.url, settle_s=0.1), **changes)

    def load(self, model: str) -> None:
        path, text = ("/api/embed", "input") if "nomic" in model else ("/api/generate", "prompt")
        body = {"model": model, text: "x", "stream": False, "options": {"num_predict": 2}, "keep_alive": -1}
        httpx.post(self.ollama.url + path, json=body, trust_env=False, verify=False, timeout=DEADLINE_S).raise_for_status()

    def prepare(self, model: str) -> None:
        details = PrepareAttemptDetails(
            a_lease(model), SETTINGS, MODELS, self.backend(), self.device.read, stopping=lambda: False
        )
        self.policy.prepare_attempt(details)

    def clean_up(self, model: str, *, orphaned: bool = False, **changes: float) -> CleanUp:
        details = CleanUpAttemptDetails(
            a_lease(model), SETTINGS, self.backend(**changes), self.device.read, lambda: False, orphaned
        )
        found = self.policy.clean_up_attempt(details)
        assert found is not None
        return found


@pytest.fixture
def machine() -> Iterator[Machine]:
    card = SimulatedCard(speed=50)
    with simulated_nvml(card), OllamaSimulator(card) as ollama:
        yield Machine(ollama, card, NvmlDevice(SETTINGS), Residents(), card.free_bytes)


def test_job_after_job_leaves_the_card_empty_and_never_holds_two_models(machine: Machine) -> None:
    for model in (GEMMA, "nomic-embed-text", GEMMA):
        machine.prepare(model)
        machine.load(model)
        assert machine.clean_up(model).verified
        assert machine.card.free_bytes == machine.empty_bytes

    assert machine.card.overlap_count == 0
    assert machine.card.peak_bytes < 4_600_000_000


def test_a_job_behind_another_model_has_the_card_to_itself(machine: Machine) -> None:
    machine.load(GEMMA)

    machine.prepare("nomic-embed-text")

    assert machine.card.free_bytes == machine.empty_bytes


def test_memory_that_comes_back_late_is_waited_for(machine: Machine) -> None:
    machine.load(GEMMA)
    machine.ollama.faults.add("slow_unload")

    found = machine.clean_up(GEMMA)

    assert found.verified
    assert found.waited_s >= machine.card.real_seconds(7.5)
    assert machine.card.free_bytes == machine.empty_bytes


def test_a_dead_workers_request_keeps_the_card_until_it_has_ended(machine: Machine) -> None:
    machine.load(GEMMA)
    machine.ollama.faults.add("stall")
    body = json.dumps({"model": GEMMA, "prompt": "x"}).encode()
    address = machine.ollama.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=DEADLINE_S) as request:
        request.sendall(b"POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert request.recv(1)
        assert not machine.clean_up(GEMMA, orphaned=True, release_s=0.3).verified

    assert machine.clean_up(GEMMA, orphaned=True).verified
    assert machine.card.free_bytes == machine.empty_bytes


def test_an_outage_gives_the_memory_back_too(machine: Machine) -> None:
    machine.prepare(GEMMA)
    machine.load(GEMMA)
    machine.ollama.go_away()

    assert machine.clean_up(GEMMA).verified
    assert machine.card.free_bytes == machine.empty_bytes
