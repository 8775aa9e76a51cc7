"""Records in each backend's breaker how jobs and probes fared; decides no hold."""

from __future__ import annotations

import logging

from gpuqueue.domain.endpoints import of_queue, on_device
from gpuqueue.domain.errors import BackendUnavailable, StoreError
from gpuqueue.domain.job import Lease
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.worker.site import Site

LONGEST_WAIT_S = 300.0  # between two probes, when no queue sets retry_every
logger = logging.getLogger("gpuqueue.worker")


class Backends:
    """The configured backends of one worker."""

    def __init__(self, site: Site) -> None:
        self._store = site.store
        self._settings = site.settings
        self._clock = site.clock
        self._log = site.log

    def of(self, lease: Lease) -> BackendSettings | None:
        """Return the backend that an attempt needs, None when its queue needs none."""
        settings = self._settings.queues.get(lease.queue)
        device = None if lease.placement is None else lease.placement.device
        return None if settings is None else on_device(settings.backend, device, self._settings.backends)

    def probe(self) -> None:
        """Check each backend that is due: at its interval while available, at its breaker's time while not."""
        for backend in self._settings.backends:
            with self._store.reading() as reads:
                row = reads.backends().get(backend.name)
            now = self._clock.now()
            if row is not None and row.checked_at is not None:
                age_s = (now - row.checked_at).total_seconds()
                due = age_s >= backend.probe_every_s if row.available else row.retry_at is None or now >= row.retry_at
                if not due:
                    continue
            try:
                _ask(backend)
            except BackendUnavailable as error:
                self.failed(error)
            else:
                self._answered(backend, worked=False)

    def failed(self, error: BaseException) -> None:
        """Open a backend's breaker if this error of an attempt or probe means that it is unavailable."""
        backend = self._named(error.backend) if isinstance(error, BackendUnavailable) else None
        if backend is None:
            return
        retries = [
            queue.retry_every_s
            for queue in self._settings.queues.values()
            if backend in of_queue(queue.backend, self._settings.backends)
        ]
        retry_at = self._store.backends.lost(
            backend.name,
            error=str(error),
            probe_every_s=backend.probe_every_s,
            longest_s=min(retries, default=LONGEST_WAIT_S),
            now_us=self._clock.wall(),
        )
        if retry_at is not None:
            self._log.backend_lost(backend.name, str(error), retry_at)

    def heard(self, error: BaseException) -> None:
        """Call `failed` without raising StoreError: the next probe records the outage."""
        try:
            self.failed(error)
        except StoreError as unwritten:
            logger.warning("%s; the next probe will record the outage", unwritten)

    def worked(self, backend: BackendSettings) -> None:
        """Reset the breaker of a backend on which a job succeeded."""
        with self._store.reading() as reads:
            row = reads.backends().get(backend.name)
        if row is not None and row.failures:
            self._answered(backend, worked=True)

    def _answered(self, backend: BackendSettings, *, worked: bool) -> None:
        if self._store.backends.answered(backend.name, worked=worked, now_us=self._clock.wall()):
            self._log.backend_recovered(backend.name)

    def _named(self, name: str) -> BackendSettings | None:
        return next((backend for backend in self._settings.backends if backend.name == name), None)


def _ask(backend: BackendSettings) -> None:
    from gpuqueue.executors.ollama_client import OllamaClient

    OllamaClient(backend).probe()
