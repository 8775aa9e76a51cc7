"""Builds the configuration file that `gpuqueue init` writes, and finds the machine's time zone for it; writes no file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from gpuqueue.config.table import quoted_key
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.domain.units import format_size, parse_size
from gpuqueue.domain.windows import parse_zone

__all__ = ["initial_toml", "local_timezone"]

EMBEDDING_MODEL = "nomic-embed-text"
EMBEDDING_MODEL_VRAM = "0.5GB"

TEMPLATE = """\
database = {database}

[gpu]                         # several cards: [[gpu]] with device = "GPU-uuid" or index
budget = {budget}
margin = {margin:<21}# left to other programs; budget + margin must fit on the card (checked at start)
max_models = 1
keep_warm = "0s"              # release the memory after each job; or "5m", or "auto"

[ollama]
url = {url}    # or set OLLAMA_HOST
# num_parallel = 1            # requests of one model that it was started to serve at once; by default the card's slots

{models}

[queues.ai-realtime]
gpu = true
concurrency = 1
when_unavailable = "reject"   # tell the caller immediately that the service is unavailable

[queues.ai-batch]
gpu = true
concurrency = 1
pause = ["09:00-18:00"]
timezone = {timezone}
yields_to = ["ai-realtime"]
when_unavailable = "retry"
retry_every = "5m"

[queues.rfa-reminders]
[queues.rfa-distribution]
"""


def initial_toml(
    *,
    timezone: str,
    budget: int | str,
    margin: int | str,
    model: str,
    model_vram: int | str,
    ollama_url: str | None = None,
    database: str = "sqlite:///gpuqueue.db",
) -> str:
    """Return the configuration for a card shared by interactive and background AI work; sizes are strings or bytes."""
    models = {model: f"vram = {_size(model_vram)}\noptions = {{ num_ctx = 4096 }}"}
    if parse_size(budget, what="budget") >= parse_size(EMBEDDING_MODEL_VRAM, what="vram"):
        models.setdefault(EMBEDDING_MODEL, f"vram = {_size(EMBEDDING_MODEL_VRAM)}")
    return TEMPLATE.format(
        database=_text(database),
        budget=_size(budget),
        margin=_size(margin),
        url=_text(ollama_url or BackendSettings().url),
        models="\n\n".join(f"[models.{quoted_key(name)}]\n{settings}" for name, settings in models.items()),
        timezone=_text(timezone),
    )


def local_timezone(*, environ: Mapping[str, str] = os.environ, etc: Path = Path("/etc")) -> str:
    """Find the machine's time zone by its IANA name: from TZ, else from /etc, else "UTC"."""
    candidates = [
        environ.get("TZ", "").removeprefix(":"),
        _first_line(etc / "timezone"),
        os.path.realpath(etc / "localtime"),
    ]
    for candidate in candidates:
        name = re.sub(r"^.*/zoneinfo[^/]*/(?:posix/|right/)?", "", candidate)
        if name and not name.startswith("/") and _is_zone(name):
            return name
    return "UTC"


def _size(size: int | str) -> str:
    """Format a size as `"5GB"`; one that needs more than two decimals is rounded down to a megabyte."""
    if isinstance(size, str):
        return _text(size)
    text = format_size(size).replace(" ", "")
    if parse_size(text, what="size") != size and size >= 10**6:
        text = f"{size // 10**6}MB"
    return _text(text)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _first_line(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _is_zone(name: str) -> bool:
    try:
        parse_zone(name)
    except UsageError:
        return False
    return True
