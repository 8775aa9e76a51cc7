"""Finds the backends of a queue and of a device, and words their addresses and outages; asks none of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from gpuqueue.domain.moments import clock
from gpuqueue.domain.view import Backend, View

OLLAMA = "ollama"  # a queue with this backend uses every Ollama, or the one of this name


class _Endpoint(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...


Endpoint = TypeVar("Endpoint", bound=_Endpoint)


def of_queue(backend: str, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Return the backends that a queue with this `backend` may use; none when it needs none."""
    found = list(endpoints)
    named = [item for item in found if item.name == backend]
    return named or (found if backend == OLLAMA else [])


def on_device(backend: str, device: str | None, endpoints: Iterable[Endpoint]) -> Endpoint | None:
    """Return the backend that a job of such a queue uses on a device: one tied to it, else one tied to no device."""
    found = of_queue(backend, endpoints)
    tied = [item for item in found if item.device and item.device == device]
    free = [item for item in found if not item.device or device is None]
    return next(iter([*tied, *free]), None)


def standing_on(device: str, endpoints: Iterable[Endpoint], *, device_count: int) -> list[Endpoint]:
    """Return the backends with models on a device: those tied to it and, with a single device, those tied to none."""
    # With several devices, a backend tied to none does not say where its models are.
    return [item for item in endpoints if item.device == device or (not item.device and device_count == 1)]


def shown_url(url: str) -> str:
    """Remove the parts of a URL that may contain a password: the user and the query, as in `unix:///redis.sock?password=…`."""
    scheme, separator, rest = url.partition("?")[0].partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}"


def away(backend: Backend, view: View) -> str:
    """Word a backend's outage; the reason `unavailable` is shown before it."""
    # No `until`: when it will be available again cannot be known.
    next_check = "" if backend.retry_at is None else f"; next check at {clock(backend.retry_at, now=view.now)}"
    return f"{backend.name}: {backend.error}{next_check}"
