"""Provides pytest fixtures for applications and plugins that use gpuqueue; loaded only by name, so other suites are unaffected.

Load it in pytest's configuration, `addopts = "-p gpuqueue.testing.pytest_plugin"`, or in the `conftest.py` at the top,
`pytest_plugins = ["gpuqueue.testing.pytest_plugin"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from datetime import datetime

    from gpuqueue.client.queue import GPUQueue
    from gpuqueue.domain.explanation import Explanation
    from gpuqueue.domain.units import Duration
    from gpuqueue.simulators.card import SimulatedCard
    from gpuqueue.simulators.ollama import OllamaSimulator
    from gpuqueue.testing.queues import QueueMaker

__all__ = [
    "gpuqueue_db",
    "gpuqueue_eager",
    "gpuqueue_plugins",
    "gpuqueue_toml",
    "gpuqueue_travel",
    "make_gpuqueue",
    "ollama_server",
    "run_worker_until_idle",
    "simulated_card",
]

SPEED = 30.0

# Makes the assertions of the suites explain themselves like those of a test module.
pytest.register_assert_rewrite("gpuqueue.testing.policies", "gpuqueue.testing.executors", "gpuqueue.testing.devices")


@pytest.fixture
def make_gpuqueue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueMaker]:
    """Make queue objects: `make_gpuqueue(toml=None, *, plugins=(), discover_plugins=False, **overrides)`.

    Each call makes another object for the same file in `tmp_path`; all are closed at the end. Installed plugins are ignored, and
    so are the variables `GPUQUEUE_…` and `OLLAMA_HOST`, unless the test sets them.
    """
    from gpuqueue.testing.queues import foreign_variables, queue_maker

    for name in foreign_variables():
        monkeypatch.delenv(name)
    with queue_maker(tmp_path) as make:
        yield make


@pytest.fixture
def gpuqueue_toml() -> str:
    """The configuration of `gpuqueue_db`, by default empty; define a fixture of this name to set it."""
    return ""


@pytest.fixture
def gpuqueue_plugins() -> Iterable[object] | Mapping[str, object]:
    """The plugins of `gpuqueue_db` in addition to the defaults; define a fixture of this name to add some, as {name: plugin}."""
    return {}


@pytest.fixture
def gpuqueue_db(
    make_gpuqueue: QueueMaker, gpuqueue_toml: str, gpuqueue_plugins: Iterable[object] | Mapping[str, object]
) -> GPUQueue:
    """A queue object with a separate file, closed at the end; see `gpuqueue_toml` and `gpuqueue_plugins`."""
    return make_gpuqueue(gpuqueue_toml, plugins=gpuqueue_plugins)


@pytest.fixture
def gpuqueue_eager(gpuqueue_db: GPUQueue) -> Iterator[GPUQueue]:
    """The queue object `gpuqueue_db`, whose jobs run at once where they are enqueued; see `gpuqueue.testing.eager`.

    An application's test defines `gpuqueue_db` to return the application's own queue object.
    """
    from gpuqueue.testing.eager import eager

    with eager(gpuqueue_db):
        yield gpuqueue_db


@pytest.fixture
def gpuqueue_travel(gpuqueue_db: GPUQueue) -> Iterator[Callable[[datetime | Duration], None]]:
    """`gpuqueue_travel("2h")` moves the clock of `gpuqueue_db` until the end of the test; calls add up.

    It takes a duration or an aware datetime; see `gpuqueue.testing.travel`.
    """
    from gpuqueue.testing.travelling import travel

    with ExitStack() as journey:
        yield lambda to: journey.enter_context(travel(gpuqueue_db, to))


@pytest.fixture
def simulated_card() -> Iterator[SimulatedCard]:
    """A simulated 8 GiB card, thirty times as fast as a real one, which the whole test process sees through NVML.

    It is device 0 of a configuration with `[gpu]`. Make it hot with `simulated_card.temperature_c = 90`, lost with
    `.lost = True`, or full with `.take(bytes)`.
    """
    from gpuqueue.simulators.card import SimulatedCard
    from gpuqueue.simulators.nvml import simulated_nvml

    card = SimulatedCard(speed=SPEED)
    with simulated_nvml(card):
        yield card


@pytest.fixture
def ollama_server(simulated_card: SimulatedCard) -> Iterator[OllamaSimulator]:
    """A simulated Ollama on that card, with gemma4:e4b and nomic-embed-text; `.url` is for `[ollama] url`.

    `.go_away()` makes it unavailable, `.come_back()` available again.
    """
    from gpuqueue.simulators.ollama import OllamaSimulator

    with OllamaSimulator(simulated_card) as ollama:
        yield ollama


@pytest.fixture
def run_worker_until_idle(request: pytest.FixtureRequest) -> Callable[..., dict[int, Explanation]]:
    """Run a worker in this thread until no job can start any more; fails with the explanation of each job that is stuck.

    `run_worker_until_idle(gq=gpuqueue_db, *, queues=None, threads=None, may_wait=False, timeout_s=120)`. With `may_wait` it
    returns the explanations instead: {job id: Explanation}.
    """
    from gpuqueue.testing.idle import JobsStuck, run_until_idle

    def run(gq: GPUQueue | None = None, **options: Any) -> dict[int, Explanation]:
        try:
            return run_until_idle(request.getfixturevalue("gpuqueue_db") if gq is None else gq, **options)
        except JobsStuck as stuck:
            pytest.fail(str(stuck), pytrace=False)

    return run
