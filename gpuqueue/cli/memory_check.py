"""Checks for `doctor` whether models are read ahead, and names who uses the host's memory where that is why not."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gpuqueue.cli import checks
from gpuqueue.cli.checks import OK, Check
from gpuqueue.config.loading import Config
from gpuqueue.domain.errors import ConfigurationError, ExecutionError
from gpuqueue.domain.models import full_name
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.domain.units import format_size

SHOWN_USERS = 5


def reading_ahead(config: Config) -> Iterator[Check]:
    """Check it for the largest configured model of each Ollama on this host."""
    from gpuqueue.worker.prefetch import needed_bytes, prefetching

    backends = prefetching(config.devices, config.backends)
    for backend in dict.fromkeys(item.name for item in backends.values()):
        settings = next(item for item in backends.values() if item.name == backend)
        try:
            found = _largest(settings, config)
        except (ExecutionError, ConfigurationError):  # the check of the Ollama says why
            continue
        if found is not None:
            model, file_bytes, files = found
            yield _one(model, file_bytes, files, needed_bytes(file_bytes, config.devices, backends))


def _largest(backend: BackendSettings, config: Config) -> tuple[str, int, list[str]] | None:
    """Return the largest of the configured models that an Ollama has: its name, its size and its files."""
    from gpuqueue.executors.ollama_client import OllamaClient

    client = OllamaClient(backend)
    sizes = {full_name(model): size for model, size in client.models(checks.PROBE_S).items()}
    has = [model for model in config.models if full_name(model) in sizes]
    if not has:
        return None
    model = max(has, key=lambda item: sizes[full_name(item)])
    return model, sizes[full_name(model)], client.files(model, checks.PROBE_S)


def _one(model: str, file_bytes: int, files: list[str], needed_bytes: int) -> Check:
    from gpuqueue.devices import host_memory

    available_bytes = host_memory.available_bytes()
    unreadable = [path for path in files if not os.access(path, os.R_OK)]
    if unreadable or not files:
        where = "Ollama does not say where its file is"
        if unreadable:
            is_seen = os.path.exists(unreadable[0])
            where = (
                f"this user cannot read {unreadable[0]}" if is_seen else f"{unreadable[0]} is not here, or hidden from this user"
            )
        mend = "to have models read ahead, let the worker's user read Ollama's files, for example as a member of its group"
        return Check(OK, "prefetch", f"off for {model}: {where}", mend if unreadable else "")
    if available_bytes is None:
        return Check(OK, "prefetch", "off: this system does not say how much memory is available")
    memory = f"{format_size(available_bytes)} of this host's memory is available"
    if available_bytes >= needed_bytes:
        return Check(OK, "prefetch", f"the next model's file is read ahead; {memory}, {model} needs {format_size(needed_bytes)}")
    users = [f"{name} {format_size(size)}" for name, size in host_memory.largest_users(SHOWN_USERS)]
    users.append(f"the page cache {format_size(host_memory.page_cache_bytes() or 0)}")
    return Check(
        OK,
        "prefetch",
        f"off: {memory}; {model} ({format_size(file_bytes)}) needs {format_size(needed_bytes)}, including Ollama's prompt cache. "
        f"Memory is used by {', '.join(users)}",
        "to have models read ahead, free memory; otherwise a model that is not in the page cache is loaded from the disk",
    )
