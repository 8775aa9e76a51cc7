"""Asks the backends which models they have, which are loaded, and how large a model may be; loads and unloads none."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gpuqueue.decisions.view import build, largest_budget
from gpuqueue.domain.endpoints import standing_on
from gpuqueue.domain.estimates import SHOWN, Observation, model_key
from gpuqueue.domain.model_health import known_bytes, settings_of
from gpuqueue.domain.models import full_name
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.domain.view import View
from gpuqueue.executors.ollama_client import OllamaClient
from gpuqueue.executors.ollama_sizes import expected_bytes
from gpuqueue.worker.site import Site

LOOK_EVERY_S = 2.0
LIST_EVERY_S = 30.0
QUERY_S = 1.0
logger = logging.getLogger("gpuqueue.worker")


class ModelProbe:
    """Three duties of the worker's maintenance; each asks only available backends."""

    def __init__(self, site: Site) -> None:
        self._store = site.store
        self._settings = site.settings
        self._clock = site.clock
        self._looked_at_s = self._listed_at_s = float("-inf")
        self._asked: set[str] = set()  # models whose size was asked for

    def list_models(self) -> None:
        """Record which models each backend has on its disk."""
        if self._clock.monotonic() - self._listed_at_s < LIST_EVERY_S:
            return
        self._listed_at_s = self._clock.monotonic()
        with self._store.reading() as reads:
            noted = {name: row.models for name, row in reads.backends().items()}
        for backend in self._available():
            found = OllamaClient(backend).models(timeout_s=QUERY_S)
            if found != noted.get(backend.name):
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
        """Estimate the size of an unknown model that waiting jobs need, and have those jobs sized again."""
        largest_bytes = largest_budget(self._settings)
        with self._store.snapshot() as reads:
            gpu = [name for name, queue in self._settings.queues.items() if queue.gpu]
            waiting = {model for name in gpu for model, _ in reads.demand_classes(name, largest_bytes=largest_bytes)}
            new = waiting - self._asked - {""}
            if not new or not largest_bytes:
                return
            view = build(reads, self._settings, self._clock.now())
        for model in new:
            if known_bytes(model, view) is None:
                self._size(model, view, largest_bytes)
            self._asked.add(model)  # after the answer: a model whose backend does not answer now is asked for again

    def _size(self, model: str, view: View, largest_bytes: int) -> None:
        settings = settings_of(model, view)
        options = settings.options if settings else None
        for backend in self._available():
            on_disk = {full_name(name): size for name, size in (view.backends[backend.name].models or {}).items()}
            weights_bytes = on_disk.get(full_name(model))
            if weights_bytes:
                info = OllamaClient(backend).description(model, timeout_s=QUERY_S)
                size = min(expected_bytes(info, weights_bytes, (options or {}).get("num_ctx")), largest_bytes)
                logger.info("%s is expected to need %d MB", model, size // 10**6)
                self._store.estimates.learn([Observation(SHOWN, model_key(model, options), size)], now_us=self._clock.wall())
                self._store.jobs.forget_demands_of(model)
                return

    def _available(self) -> Iterable[BackendSettings]:
        with self._store.reading() as reads:
            rows = reads.backends()
        return [item for item in self._settings.backends if item.name not in rows or rows[item.name].available]
