"""Reads and validates each section of the configuration, and checks the sections against each other; opens no file.

Every function takes the table it reads, so that each error names the wrong file entry, variable or argument.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from gpuqueue.config.shared import device_order
from gpuqueue.config.table import Setting, Table, worded
from gpuqueue.domain.endpoints import OLLAMA
from gpuqueue.domain.errors import ConfigurationError, UsageError, did_you_mean
from gpuqueue.domain.job import FINISHED, State
from gpuqueue.domain.rates import parse_rate
from gpuqueue.domain.settings import (
    HIGHEST_PRIORITY,
    LOWEST_PRIORITY,
    MOST_THREADS,
    BackendSettings,
    DeviceSettings,
    LogFormat,
    ModelSettings,
    OnSpill,
    Overrun,
    QueueSettings,
    Rate,
    Resume,
    WhenUnavailable,
    WindowRule,
    YieldMode,
)
from gpuqueue.domain.units import format_size, parse_duration
from gpuqueue.domain.windows import parse_window, parse_zone

DEVICE_KEYS = (
    *("device", "budget", "margin", "max_models", "slots", "keep_warm"),
    *("min_free", "affinity", "labels"),
)
BACKEND_PATIENCE = ("connect", "first_token", "gap", "total", "settle", "release", "probe_every")
BACKEND_KEYS = ("name", "url", "device", "num_parallel", "prefetch", *BACKEND_PATIENCE)
MODEL_KEYS = ("vram", "options", "resume", "on_spill")
QUEUE_KEYS = (
    "gpu",
    "concurrency",
    "rate",
    "pause",
    "windows",
    "overrun",
    "timezone",
    "yields_to",
    "when_unavailable",
    "retry_every",
    "yield_mode",
    "min_run",
    "nearly_done",
    "max_preemptions",
    "protect",
    "max_attempts",
    "timeout",
    "priority",
    "backend",
    "fallback",
)
WORKER_KEYS = ("threads", "async_jobs", "lease", "grace", "max_crashes", "log_format")
RETENTION_KEYS = tuple(state.value for state in FINISHED)
PLUGINS_KEYS = ("block",)

DEFAULT_RETENTION: Mapping[State, float | None] = {
    State.COMPLETED: 7 * 86_400.0,
    State.CANCELLED: 7 * 86_400.0,
    State.DISCARDED: 30 * 86_400.0,
}

OLLAMA_PORT = 11434
NO_BACKEND = "none"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """One worker process's settings; workers may differ in them."""

    threads: int = 8  # plain functions that run at once
    async_jobs: int = 500  # asynchronous functions that run at once, on one event loop
    lease_s: float = 30.0
    grace_s: float = 30.0  # how long attempts may take to finish at shutdown
    max_crashes: int = 3  # how often a process that runs only one job may die before the job is discarded
    log_format: LogFormat = "text"  # for `gpuqueue worker`, on stderr


def read_devices(tables: Sequence[Table]) -> tuple[DeviceSettings, ...]:
    """Read the cards of [gpu] or [[gpu]]."""
    devices: dict[str, DeviceSettings] = {}
    for position, table in enumerate(tables):
        device = _device(table, position)
        if device.name in devices:
            raise table.error(f"the device {device.name!r} is already configured; give each [[gpu]] its own device = …")
        devices[device.name] = device
    return tuple(sorted(devices.values(), key=device_order))


def backend_names(tables: Sequence[Table]) -> list[str]:
    """Read the name of [ollama], which is optional, or the names of several [[ollama]], which are required."""
    names = [table.text("name", "" if len(tables) > 1 else OLLAMA, example='name = "desk"') for table in tables]
    for name, table in zip(names, tables, strict=True):
        if len(tables) > 1 and (not name or name in (OLLAMA, NO_BACKEND)):
            raise table.error(f'with several [[ollama]], each needs its own name, other than {OLLAMA!r}; write name = "desk"')
        if names.count(name) > 1:
            raise table.error(f"the Ollama {name!r} is already configured; give each [[ollama]] its own name = …")
    return names


def read_backends(
    tables: Sequence[Table], devices: Sequence[DeviceSettings], *, ollama_host: Setting | None
) -> tuple[BackendSettings, ...]:
    """Read [ollama] or [[ollama]]; `ollama_host` replaces a single one's missing url; without tables no Ollama is needed."""
    names = backend_names(tables)
    found = []
    for name, table in zip(names, tables, strict=True):
        table.expect(BACKEND_KEYS)
        url = table.get("url") or (ollama_host if len(tables) == 1 else None)
        if url is None and len(tables) > 1:
            raise table.error('url is missing; set it to the address of this Ollama: url = "http://127.0.0.1:11435"')
        address = BackendSettings().url if url is None else worded(url, lambda url=url: ollama_url(url.value))  # type: ignore[misc]
        device = table.text("device", "", example='device = "gpu0"')
        known = [item.name for item in devices]
        setting = table.get("device")
        if setting is not None and device not in known:
            raise setting.error(f"unknown device{did_you_mean(device, known)}. Devices: {', '.join(known) or 'none'}")
        prefetch = table.flag("prefetch", BackendSettings().prefetch)
        patience = {f"{key}_s": _patience(table, key) for key in BACKEND_PATIENCE}
        slots = max((item.slots for item in devices if device in ("", item.name)), default=1)
        num_parallel = table.integer("num_parallel", slots, minimum=1)
        found.append(BackendSettings(name, address, device=device, num_parallel=num_parallel, prefetch=prefetch, **patience))
    return tuple(sorted(found, key=lambda item: item.name))


def read_models(tables: Mapping[str, Table], devices: Sequence[DeviceSettings]) -> dict[str, ModelSettings]:
    """Read [models.NAME]; each must fit on a device, if there are devices."""
    models = {}
    for name, table in tables.items():
        table.expect(MODEL_KEYS)
        vram = table.get("vram")
        if vram is None:
            raise table.error('vram is missing; set it to the memory that the loaded model needs: vram = "4.5GB"')
        vram_bytes = table.size("vram", 0)
        if not vram_bytes:
            raise vram.error('must be greater than 0; write vram = "4.5GB"')
        largest = max(devices, key=lambda device: device.budget_bytes, default=None)
        if largest is not None and vram_bytes > largest.budget_bytes:
            raise vram.error(
                f"the model fits no device; the largest budget is {format_size(largest.budget_bytes)} "
                f"({largest.name}). Raise gpu.budget or use a smaller model"
            )
        options = table.table("options", "options = { num_ctx = 4096 }")
        resume = cast(Resume, table.choice("resume", "continue", get_args(Resume)))
        on_spill = cast(OnSpill, table.choice("on_spill", "accept", get_args(OnSpill)))
        models[name] = ModelSettings(name, vram_bytes, _json_data(options), resume, on_spill)
    return models


def read_queues(
    tables: Mapping[str, Table], devices: Sequence[DeviceSettings], *, backends: Sequence[str], has_ollama: bool
) -> dict[str, QueueSettings]:
    """Read [queues.NAME]; a queue may yield only to configured queues, and never to itself, directly or through others."""
    queues = {
        name: read_queue(name, table, has_device=bool(devices), backends=backends, has_ollama=has_ollama)
        for name, table in tables.items()
    }
    for name, table in tables.items():
        yields_to = table.get("yields_to")
        if yields_to is not None:
            check_yielding(name, yields_to, queues)
    return queues


def read_worker(table: Table) -> WorkerSettings:
    """Read [worker]."""
    table.expect(WORKER_KEYS)
    default = WorkerSettings()
    return WorkerSettings(
        threads=table.integer("threads", default.threads, minimum=1, maximum=MOST_THREADS),
        async_jobs=table.integer("async_jobs", default.async_jobs, minimum=1),
        lease_s=table.duration("lease", default.lease_s, positive=True),
        grace_s=table.duration("grace", default.grace_s),
        max_crashes=table.integer("max_crashes", default.max_crashes, minimum=1),
        log_format=cast(LogFormat, table.choice("log_format", default.log_format, get_args(LogFormat))),
    )


def read_retention(table: Table) -> dict[State, float | None]:
    """Read [retention]; None keeps finished jobs forever."""
    table.expect(RETENTION_KEYS)
    retention = dict(DEFAULT_RETENTION)
    for state in FINISHED:
        setting = table.get(state.value)
        if setting is not None:
            retention[state] = _age(setting)
    return retention


def read_plugins(table: Table) -> tuple[str, ...]:
    """Read [plugins]."""
    table.expect(PLUGINS_KEYS)
    return table.texts("block", example='["windows"]')


def needs_ollama(table: Table, models: Mapping[str, ModelSettings], queues: Mapping[str, QueueSettings]) -> bool:
    """Return whether the configuration has an Ollama section or uses an Ollama."""
    return table.has(OLLAMA) or bool(models) or any(queue.backend for queue in queues.values())


def ollama_url(address: object) -> str:
    """Complete an address as Ollama does: `host`, `host:port`, `:port` or a URL; 0.0.0.0 means this machine."""
    wrong = UsageError(f'{address!r} is not an Ollama address. Expected for example "http://127.0.0.1:11434", "gpu-host:11434"')
    if not isinstance(address, str):
        raise wrong
    text = address.strip(" '\"")
    scheme, has_scheme, rest = text.partition("://") if "://" in text else ("http", "", text)
    rest = rest.rstrip("/")
    # A bare IPv6 address would be read as a host and a port.
    if re.fullmatch(r"[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F]*", rest):
        rest = f"[{rest}]"
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port
    except ValueError:
        raise wrong from None
    if not rest or parts.scheme not in {"http", "https"} or parts.query or parts.fragment or re.search(r"\s", text):
        raise wrong
    host = parts.hostname or ""
    if host in {"", "0.0.0.0"}:
        host = "127.0.0.1"
    elif host == "::":
        host = "::1"
    if ":" in host:
        host = f"[{host}]"
    if port is None and not has_scheme:
        port = OLLAMA_PORT
    user, at, _ = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user}{at}{host}{'' if port is None else f':{port}'}{parts.path}"


def _device(table: Table, position: int) -> DeviceSettings:
    table.expect(DEVICE_KEYS)
    budget = table.get("budget")
    if budget is None:
        raise table.error('budget is missing; set it to the device memory that jobs may use: budget = "5GB"')
    budget_bytes = table.size("budget", 0)
    if not budget_bytes:
        raise budget.error('must be greater than 0; write budget = "5GB"')
    name, index = _device_name(table.get("device"), position)
    default = DeviceSettings(name, budget_bytes)
    return DeviceSettings(
        name=name,
        budget_bytes=budget_bytes,
        margin_bytes=table.size("margin", 0),
        max_models=table.integer("max_models", 1, minimum=1),
        slots=table.integer("slots", 1, minimum=1),
        keep_warm_s=_keep_warm(table),
        index=index,
        min_free_bytes=table.size("min_free", default.min_free_bytes),
        affinity_s=table.duration("affinity", default.affinity_s),
        labels=table.texts("labels", example='["fast"]'),
    )


def _keep_warm(table: Table) -> float | Literal["auto"]:
    setting = table.get("keep_warm")
    return "auto" if setting is not None and setting.value == "auto" else table.duration("keep_warm", 0.0)


def _device_name(setting: Setting | None, position: int) -> tuple[str, int]:
    if setting is None:
        return f"gpu{position}", position
    value = setting.value
    if isinstance(value, str) and (match := re.fullmatch(r"(?:gpu)?([0-9]{1,4})", value.strip())):
        value = int(match[1])
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return f"gpu{value}", value
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.:/-]*", value.strip()):
        return value.strip(), position
    raise setting.error('must be a card\'s index or UUID, as listed by `nvidia-smi -L`; write device = 0 or device = "GPU-…"')


def _patience(table: Table, key: str) -> float:
    default: float = getattr(BackendSettings(), f"{key}_s")
    return table.duration(key, default, positive=key not in {"settle", "release"})


def _json_data(table: Table) -> dict[str, Any]:
    data = table.data()
    try:
        json.dumps(data, allow_nan=False)
    except (TypeError, ValueError):
        raise table.error("options are sent to Ollama as JSON; use only strings, finite numbers, true, false and lists") from None
    return data


def read_queue(name: str, table: Table, *, has_device: bool, backends: Sequence[str], has_ollama: bool) -> QueueSettings:
    """Read one queue's settings; which queues it may yield to is checked by `check_yielding`."""
    table.expect(QUEUE_KEYS)
    gpu = table.flag("gpu", False)
    if gpu and not has_device:
        raise table.error(
            'gpu = true, but no card is configured; add [gpu] with budget = "5GB" (also for an Ollama on another machine)'
        )
    default = QueueSettings(name)
    return QueueSettings(
        name=name,
        gpu=gpu,
        concurrency=table.integer("concurrency", None, minimum=1, advice=f"to stop the queue, run: gpuqueue pause {name}"),
        rate=_rate(table),
        pause=_pause(table),
        windows=_windows(table),
        overrun=cast(Overrun, table.choice("overrun", default.overrun, get_args(Overrun))),
        timezone=_zone(table),
        yields_to=table.texts("yields_to", example='["ai-realtime"]'),
        when_unavailable=cast(WhenUnavailable, table.choice("when_unavailable", "wait", get_args(WhenUnavailable))),
        retry_every_s=table.duration("retry_every", default.retry_every_s, positive=True),
        yield_mode=cast(YieldMode, table.choice("yield_mode", default.yield_mode, get_args(YieldMode))),
        min_run_s=table.duration("min_run", default.min_run_s),
        nearly_done_s=table.duration("nearly_done", default.nearly_done_s),
        max_preemptions=table.integer("max_preemptions", None, minimum=0),
        protect_s=table.duration("protect", None),
        max_attempts=table.integer("max_attempts", None, minimum=1),
        timeout_s=table.duration("timeout", None, positive=True),
        priority=table.integer("priority", None, minimum=LOWEST_PRIORITY, maximum=HIGHEST_PRIORITY),
        backend=_backend(table, OLLAMA if gpu and has_ollama else NO_BACKEND, backends),
        fallback=table.texts("fallback", example='["gemma3:1b"]'),
    )


def _pause(table: Table) -> tuple[str, ...]:
    texts = table.texts("pause", example='["09:00-18:00"]')
    setting = table.get("pause")
    if setting is not None:
        for text in texts:
            worded(setting, lambda text=text: parse_window(text))  # type: ignore[misc]
    return texts


def _rate(table: Table) -> Rate | None:
    setting = table.get("rate")
    return None if setting is None else worded(setting, lambda: parse_rate(setting.value))


def _windows(table: Table) -> tuple[WindowRule, ...]:
    rules = []
    for item in table.sequence("windows", 'windows = [{ at = "18:00-09:00", concurrency = 1 }]'):
        item.expect(("at", "concurrency", "rate"))
        at = item.get("at")
        if at is None:
            raise item.error('at is missing; set it to the hours of the limit: { at = "18:00-09:00", concurrency = 1 }')
        text = item.text("at", "", example='at = "18:00-09:00"')
        worded(at, lambda text=text: parse_window(text))  # type: ignore[misc]
        rule = WindowRule(text, item.integer("concurrency", None, minimum=1), _rate(item))
        if rule.concurrency is None and rule.rate is None:
            raise item.error("sets no limit; add concurrency or rate, or move the hours to pause")
        rules.append(rule)
    return tuple(rules)


def _zone(table: Table) -> str:
    name = table.text("timezone", "UTC", example='timezone = "Asia/Bangkok"')
    setting = table.get("timezone")
    if setting is not None:
        worded(setting, lambda: parse_zone(name))
    return name


def _backend(table: Table, default: str, backends: Sequence[str]) -> str:
    name = table.choice("backend", default, tuple(dict.fromkeys((OLLAMA, *backends, NO_BACKEND))))
    return "" if name == NO_BACKEND else name


def check_yielding(name: str, setting: Setting, queues: Mapping[str, QueueSettings]) -> None:
    """Refuse a queue that yields to itself, also through others, or to an unknown one. Raises: ConfigurationError."""
    for other in queues[name].yields_to:
        if other == name:
            raise setting.error("a queue cannot yield to itself; remove its own name")
        if other not in queues:
            raise setting.error(
                f"unknown queue {other!r}{did_you_mean(other, queues)}. Queues: {', '.join(queues)}. "
                f"A queue to yield to needs its own section, [queues.{other}]"
            )
    cycle = _path(name, name, queues, set())
    if cycle:
        raise setting.error(f"the queues yield to each other in a cycle: {' → '.join([name, *cycle])}; remove one of them")


def _path(start: str, goal: str, queues: Mapping[str, QueueSettings], seen: set[str]) -> list[str]:
    """Find the path from one queue to another along yields_to; empty if there is none."""
    for other in queues[start].yields_to if start in queues else ():
        if other == goal:
            return [other]
        if other not in seen:
            seen.add(other)
            rest = _path(other, goal, queues, seen)
            if rest:
                return [other, *rest]
    return []


def _age(setting: Setting) -> float | None:
    if setting.value == "forever":
        return None
    try:
        return parse_duration(setting.value, what=setting.where)
    except UsageError as error:
        raise ConfigurationError(f'{error}, or "forever"') from None
