"""Checks the setup for `doctor`, one thing at a time; changes nothing."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gpuqueue.cli.session import Session
from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.initial import local_timezone
from gpuqueue.config.loading import Config
from gpuqueue.config.shared import settings_difference, shared_settings
from gpuqueue.domain.endpoints import shown_url
from gpuqueue.domain.errors import ConfigurationError, ExecutionError, GPUQueueError
from gpuqueue.domain.job import State
from gpuqueue.domain.moments import clock
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.domain.units import counted, format_size
from gpuqueue.store import database
from gpuqueue.store.log_readers import cause_of_large_log

if TYPE_CHECKING:
    from gpuqueue.executors.ollama_client import OllamaClient

OK, WARN, PROBLEM = "ok", "warn", "problem"

MINIMUM_PYTHON = (3, 11)
LARGE_WAL_BYTES = 256 * 10**6
LITTLE_SPACE_BYTES = 500 * 10**6
CLOCK_SLACK = timedelta(seconds=5)
PROBE_S = 2.0
SAID_ELSEWHERE = ("card_lost", "budget_above_card", "model_loading")  # by the check of the card, or soon over


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `mend` says how to fix it ("": nothing to fix), `has_command` that it has a command to copy whole."""

    level: str
    name: str
    detail: str
    mend: str = ""
    has_command: bool = False


def versions() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    is_new = sys.version_info >= MINIMUM_PYTHON
    yield Check(OK if is_new else PROBLEM, "python", python, "" if is_new else "gpuqueue needs Python 3.11 or newer")
    found = ".".join(map(str, database.LIBRARY_VERSION))
    is_new = database.LIBRARY_VERSION >= database.MINIMUM_SQLITE
    yield Check(OK if is_new else PROBLEM, "sqlite", found, "" if is_new else "gpuqueue needs SQLite 3.35 or newer")


def clock_and_zone() -> Iterator[Check]:
    zone = local_timezone()
    now = datetime.now(UTC)
    shown = f"{now.astimezone():%Y-%m-%d %H:%M %Z}, zone {zone}"
    if zone == "UTC" and now.astimezone().utcoffset():
        yield Check(
            WARN, "clock", f"{shown}: the machine's time zone has no name", "set TZ, or link /etc/localtime to a time zone"
        )
    else:
        yield Check(OK, "clock", shown)


def cards(config: Config) -> Iterator[Check]:
    """Compare each configured card with what NVML reads here."""
    if not config.devices:
        yield Check(OK, "card", "none is configured; GPU queues need a [gpu] section")
        return
    from gpuqueue.devices.nvml import NvmlDevice, open_device

    for settings in config.devices:
        device = open_device(settings, config.backends)
        wanted = f"budget {format_size(settings.budget_bytes)} + margin {format_size(settings.margin_bytes)}"
        if not isinstance(device, NvmlDevice):
            probe = NvmlDevice(settings)
            why = probe.read().lost or "no reason given"
            probe.close()
            yield Check(
                WARN,
                f"card {settings.name}",
                f"NVML cannot read it here ({why}); relying on {wanted} alone",
                "ignore this if the card is in another machine; otherwise install its driver, or check nvidia-smi",
            )
            continue
        reading = device.read()
        device.close()
        if reading.lost:
            yield Check(
                PROBLEM,
                f"card {settings.name}",
                reading.lost,
                "check nvidia-smi and dmesg; jobs for it wait until it can be read again",
            )
        elif reading.total_bytes is None:
            yield Check(WARN, f"card {settings.name}", f"NVML does not report its memory; relying on {wanted} alone")
        elif settings.budget_bytes + settings.margin_bytes > reading.total_bytes:
            yield Check(
                PROBLEM,
                f"card {settings.name}",
                f"{wanted} exceeds the {format_size(reading.total_bytes)} of {reading.name or 'the card'}",
                f"lower [gpu] budget or margin in {config.path or 'the configuration'}",
            )
        else:
            yield Check(OK, f"card {settings.name}", f"{reading.name}, {format_size(reading.total_bytes)}; {wanted} fits")


def ollama(config: Config) -> Iterator[Check]:
    """Ask each Ollama whether it answers and has the configured models."""
    for backend in config.backends:
        yield from _one_ollama(backend, config)


def _one_ollama(backend: BackendSettings, config: Config) -> Iterator[Check]:
    from gpuqueue.domain.models import full_name
    from gpuqueue.executors.ollama_client import OllamaClient

    name = f"backend {backend.name}"
    try:
        client = OllamaClient(backend)
        version = client.probe(PROBE_S)
        has = {full_name(model) for model in client.models(PROBE_S)}
    except (ExecutionError, ConfigurationError) as error:
        yield Check(PROBLEM, name, str(error), "if it runs elsewhere, change [ollama] url in the configuration")
        return
    yield Check(OK, name, f"Ollama {version or '(old version)'} at {shown_url(backend.url)}, {counted(len(has), 'model')}")
    missing = [model for model in config.models if full_name(model) not in has]
    for model in missing:
        yield Check(PROBLEM, f"model {model}", f"{backend.name} does not have it", f"ollama pull {model}", has_command=True)
    if config.models and not missing:
        yield Check(OK, "models", f"{backend.name} has {', '.join(config.models)}")
    yield from _num_parallel(backend, client)


def _num_parallel(backend: BackendSettings, client: OllamaClient) -> Iterator[Check]:
    """Compare `num_parallel` with how an Ollama of this machine was started, where that can be seen."""
    from gpuqueue.devices.runners import VARIABLE, ollamas_here

    address = urlsplit(backend.url)
    if address.hostname not in ("127.0.0.1", "localhost", "::1"):
        return
    servers = [server for server in ollamas_here() if server.port in (None, address.port)]
    if len(servers) != 1:
        return
    (server,) = servers
    runner = max(server.runners, key=lambda pid: server.runners[pid], default=None)
    if server.num_parallel is not None:
        serves, source = server.num_parallel, VARIABLE
    elif runner is not None and (server.runners[runner] > 1 or _runs_several(client)):
        serves, source = server.runners[runner], f"the command line of its runner {runner}"
    else:
        return
    name, wanted = f"backend {backend.name}", backend.num_parallel
    said = f"it was started for {counted(serves, 'request')} of a model at once ({source})"
    if serves == wanted:
        yield Check(OK, name, f"{said}, as num_parallel says")
        return
    then = "a model takes more memory than its jobs reserve" if serves > wanted else "jobs wait for each other inside Ollama"
    mend = f"set [ollama] num_parallel = {serves}, or restart Ollama with {VARIABLE}={wanted}"
    yield Check(WARN, name, f"{said}, but num_parallel is {wanted}: {then}", mend)


def _runs_several(client: OllamaClient) -> bool:
    """Say whether a model is loaded that Ollama runs with several requests at once if it was started so."""
    from gpuqueue.executors.ollama_sizes import is_one_at_once

    try:
        return any(not is_one_at_once(client.description(item.model, PROBE_S)) for item in client.residents(PROBE_S))
    except ExecutionError:
        return False


def database_file(path: Path) -> Iterator[Check]:
    """Check the file without opening it for writing."""
    if not path.exists():
        place = path.parent
        if not place.is_dir():
            yield Check(PROBLEM, "database", f"the folder {place} does not exist", f"mkdir -p {place}", has_command=True)
        elif not os.access(place, os.W_OK):
            yield Check(
                PROBLEM,
                "database",
                f"this user cannot write to {place}",
                "change its owner, or set another `database` in the configuration",
            )
        else:
            yield Check(OK, "database", f"{path} does not exist yet; the first worker or submit creates it")
        return
    try:
        version = database.schema_version(path)
    except GPUQueueError as error:
        yield Check(PROBLEM, "database", str(error), "set another `database`, or restore a backup: gpuqueue db restore FILE")
        return
    if version != database.head() and version is not None and version not in database.known_versions():
        yield Check(
            PROBLEM,
            "database",
            f"{path} was written by a newer gpuqueue (schema {version}; this one supports {database.head()})",
            "pip install --upgrade gpuqueue",
            has_command=True,
        )
    elif version != database.head():
        yield Check(
            WARN,
            "database",
            f"{path} has schema {version or 'none'}; the newest is {database.head()}",
            "gpuqueue db upgrade, or start a worker, which upgrades it too",
        )
    else:
        yield Check(OK, "database", f"{path}, schema {version}")
    unwritable = [item for item in (path, path.parent) if not os.access(item, os.W_OK)]
    for item in unwritable:
        yield Check(PROBLEM, "database", f"this user cannot write to {item}", f"chown or chmod {item}", has_command=True)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        open_to = f"other users can open it (mode {mode:04o}), including prompts and answers"
        yield Check(WARN, "file mode", open_to, f"chmod 600 {path}", has_command=True)
    free = shutil.disk_usage(path.parent).free
    if free < LITTLE_SPACE_BYTES:
        yield Check(
            WARN, "disk", f"only {format_size(free)} free in {path.parent}", "free some space; a full disk stops the queue"
        )


def database_use(gq: GPUQueue) -> Iterator[Check]:
    """Open the database as a worker does, and take its write lock once."""
    with gq.store.reading() as reads:
        newest = reads.newest_enqueued_us()
    gq.store.upkeep.try_write()
    wal_bytes = gq.store.upkeep.log_bytes()
    if wal_bytes > LARGE_WAL_BYTES:
        yield Check(
            WARN,
            "write-ahead log",
            f"{format_size(wal_bytes)}: {cause_of_large_log(gq.store)}",
            "a process that reads in a long transaction keeps the log from being emptied; end that transaction",
        )
    else:
        yield Check(OK, "write-ahead log", f"{format_size(wal_bytes)}; the write lock is available")
    ahead_us = (newest or 0) - gq.now_us()
    if ahead_us > CLOCK_SLACK.total_seconds() * 1e6:
        yield Check(
            WARN,
            "clock",
            f"the newest job was enqueued {ahead_us / 1e6:.0f} s in the future: clocks differ, or a clock was set back",
            "synchronise the clocks of all machines with NTP",
        )


def work(gq: GPUQueue, session: Session) -> Iterator[Check]:
    """Check whether waiting jobs can run: workers, their settings, holds and reservations."""
    view = gq.view()
    yield Check(OK, "workers", ", ".join(worker.id for worker in view.workers) or "none is running")
    counts = gq.counts()
    for name, queue in view.queues.items():
        waiting = sum(counts.get(name, {}).get(state, 0) for state in (State.AVAILABLE, State.SCHEDULED, State.RETRYABLE))
        if waiting and not queue.served:
            unserved = f"no worker serves it; {counted(waiting, 'job')} waiting"
            yield Check(PROBLEM, f"queue {name}", unserved, session.worker_command(name), has_command=True)
        if queue.paused is not None and queue.paused.until is None:
            paused = f"paused by {queue.paused.by} since {clock(queue.paused.at, now=view.now)} with no end time"
            yield Check(WARN, f"queue {name}", paused, session.command("resume", name), has_command=True)
    for name, holds in gq.holds().items():
        for hold in holds:
            if hold.source == "failure":
                yield Check(PROBLEM, f"queue {name}", hold.detail, hold.advice)
    with gq.store.reading() as reads:
        agreed = reads.configuration()
    mine = shared_settings(gq.own_settings())
    if agreed is not None and view.workers and agreed != mine:
        differences = "; ".join(settings_difference(mine, agreed))
        yield Check(
            WARN,
            "settings",
            f"the running workers use different settings: {differences}",
            "restart the workers with this configuration",
        )
    for worker in view.workers:
        if worker.troubles:
            cannot = f"it cannot do its work: {'; '.join(worker.troubles)}"
            yield Check(PROBLEM, f"worker {worker.id}", cannot, "restart it")
    alive = {worker.id for worker in view.workers}
    for device in view.devices.values():
        for item in device.reservations:
            kept = f"job {item.job_id} still has {format_size(item.reserved_bytes)} of {device.settings.name} reserved"
            if item.worker_id not in alive:
                yield Check(
                    PROBLEM,
                    "reservation",
                    f"{kept}, but its worker {item.worker_id} is gone",
                    f"a worker checks the memory and frees it: {session.worker_command(item.queue)}",
                    has_command=True,
                )
            elif not item.running:
                yield Check(
                    WARN,
                    "reservation",
                    f"{kept}: it has ended, but its memory is not confirmed to be released",
                    "check the worker's log if this persists",
                )


def services(gq: GPUQueue) -> Iterator[Check]:
    """Report the state of each plugin's service, such as a mirror."""
    for service in gq.services():
        error = service.status.get("error")
        if service.worker_id is None:
            yield Check(WARN, service.name, "no worker runs it", "start a worker with the plugin and its configuration")
        elif error:
            yield Check(PROBLEM, service.name, str(error), "fix the cause of the error; the service retries by itself")
        else:
            state = service.status.get("state")
            yield Check(OK, service.name, f"worker {service.worker_id} runs it" + (f": {state}" if state else ""))


def agreement(gq: GPUQueue) -> Iterator[Check]:
    """Report where the driver, Ollama and the queue disagree, as `gpuqueue gpu` does."""
    from gpuqueue.cli.cards_now import look

    seen = look(gq)
    found = [item for item in seen.discrepancies() if item.what not in SAID_ELSEWHERE]
    for item in found:
        yield Check(WARN, item.what.replace("_", " "), item.detail, item.advice)
    if seen.cards and not found:
        yield Check(OK, "agreement", "the driver, Ollama and the queue agree")
