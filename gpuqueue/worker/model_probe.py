"""Asks the backends which models they have, which are loaded, and how large a model may be; loads and unloads none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from gpuqueue.decisions.view import build, largest_budget
from gpuqueue.domain.endpoints import standing_on
from gpuqueue.domain.errors import ExecutionError
from gpuqueue.domain.estimates import ONE_AT_ONCE, SHOWN, Observation, model_key
from gpuqueue.domain.model_health import known_bytes, memory_key, settings_of
from gpuqueue.domain.models import full_name
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.domain.view import View
from gpuqueue.executors.ollama_client import OllamaClient
from gpuqueue.executors.ollama_sizes import expected_bytes, is_one_at_once
from gpuqueue.worker.site import Site

LOOK_EVERY_S = 2.0
LIST_EVERY_S = 30.0
QUERY_S = 1.0
logger = logging.getLogger("gpuqueue.worker")


class ModelProbe:
    """Three duties of the worker's maintenance; each asks only available backends.

    `on_listed` is called when `has_listed` turns true.
    """

    def __init__(self, site: Site, *, on_listed: Callable[[], None]) -> None:
        self._store = site.store
        self._settings = site.settings
        self._clock = site.clock
        self._looked_at_s = float("-inf")
        self._listed_at_s: dict[str, float] = {}
        self._asked: set[str] = set()  # models whose size was asked for
        self._parallel = max((backend.num_parallel for backend in site.settings.backends), default=1)
        self._on_listed = on_listed
        # Before the first list, a job for a model that is missing would not get its fallback.
        self.has_listed = not self._settings.backends

    def list_models(self) -> None:
        """Record which models each backend has on its disk."""
        try:
            for backend in self._available():
                if self._clock.monotonic() - self._listed_at_s.get(backend.name, float("-inf")) >= LIST_EVERY_S:
                    self._list(backend)
        finally:  # also after a failure: the breaker, not a missing list, holds the jobs of a backend that is away
            if not self.has_listed:
                self.has_listed = True
                self._on_listed()

    def _list(self, backend: BackendSettings) -> None:
        try:
            found = OllamaClient(backend).models(timeout_s=QUERY_S)
        except ExecutionError as error:  # it is asked again in the next round; the others are asked in this one
            logger.debug("the models of %s could not be listed: %s", backend.name, error)
            return
        self._listed_at_s[backend.name] = self._clock.monotonic()
        with self._store.reading() as reads:
            row = reads.backends().get(backend.name)
        if row is None or found != row.models:
            self._store.backends.note_models(backend.name, found)
            self._store.jobs.forget_demands_of(None)  # a job's preferred model may have been added or removed
            self._asked.clear()

    def look_at_loaded(self) -> None:
        """Publish the models loaded on an idle device: they time out, and other programs load them."""
        if self._clock.monotonic() - self._looked_at_s < LOOK_EVERY_S:
            return
        self._looked_at_s = self._clock.monotonic()
        for device in self._settings.devices:
            backends = standing_on(device.name, self._available(), device_count=len(self._settings.devices))
            residents = tuple(item for backend in backends for item in OllamaClient(backend).residents(timeout_s=QUERY_S))
            with self._store.snapshot() as reads:
                busy = any(item.device == device.name for item in reads.reservations())
                sighting = reads.sightings().get(device.name)
            if backends and not busy and (sighting is None or sighting.residents != residents):
                self._store.backends.publish_reading(device.name, reading=None, residents=residents, now_us=self._clock.wall())

    def size_unknown(self) -> None:
        """Estimate the size of an unknown model that waiting jobs need, and have those jobs sized again.

        Where a server takes several requests of a model at once, learn which models it runs one at a time all the same.
        """
        largest_bytes = largest_budget(self._settings)
        with self._store.snapshot() as reads:
            gpu = [name for name, queue in self._settings.queues.items() if queue.gpu]
            waiting = {model for name in gpu for model, _ in reads.demand_classes(name, largest_bytes=largest_bytes)}
            new = waiting - self._asked - {""}
            if not new or not largest_bytes:
                return
            view = build(reads, self._settings, self._clock.now())
        for model in new:
            is_unknown = known_bytes(model, view) is None
            if is_unknown or self._parallel > 1:
                self._look_up(model, view, largest_bytes if is_unknown else None)
            self._asked.add(model)  # after the answer: a model whose backend does not answer now is asked for again

    def _look_up(self, model: str, view: View, largest_bytes: int | None) -> None:
        """Ask for a model's description; its size is not estimated without `largest_bytes`."""
        settings = settings_of(model, view)
        options = settings.options if settings else {}
        for backend in self._available():
            on_disk = {full_name(name): size for name, size in (view.backends[backend.name].models or {}).items()}
            weights_bytes = on_disk.get(full_name(model))
            if weights_bytes:
                shown = OllamaClient(backend).description(model, timeout_s=QUERY_S)
                parallel = 1 if is_one_at_once(shown) else self._parallel
                learned = [Observation(ONE_AT_ONCE, model_key(model), 1)] if parallel < self._parallel else []
                if largest_bytes is not None:
                    expected = expected_bytes(
                        shown.get("model_info") or {}, weights_bytes, options.get("num_ctx"), parallel=parallel
                    )
                    size = min(expected, largest_bytes)
                    logger.info("%s is expected to need %d MB", model, size // 10**6)
                    learned.append(Observation(SHOWN, memory_key(model, view), size))
                if learned:
                    self._store.estimates.learn(learned, now_us=self._clock.wall())
                if largest_bytes is not None:
                    self._store.jobs.forget_demands_of(model)
                return

    def _available(self) -> Iterable[BackendSettings]:
        with self._store.reading() as reads:
            rows = reads.backends()
        return [item for item in self._settings.backends if item.name not in rows or rows[item.name].available]
