"""Reads how much memory this host has for the files of models, and which programs use the rest; knows nothing without /proc."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
PROMPT_CACHE_BYTES = 8 * 2**30  # a runner of Ollama keeps prompts in up to this much of the host's memory


def available_bytes() -> int | None:
    """Return what new programs could have without swapping, page cache included; None where it cannot be known."""
    return _meminfo().get("MemAvailable")


def page_cache_bytes() -> int | None:
    """Return how much of the memory holds files and can be taken back."""
    found = _meminfo()
    return found["Cached"] - found.get("Shmem", 0) if "Cached" in found else None


def largest_users(count: int) -> list[tuple[str, int]]:
    """List the programs that use the most memory of their own, largest first: (name, bytes of all its processes)."""
    used: Counter[str] = Counter()
    for name, size in _programs():
        used[name] += size
    return used.most_common(count)


def _meminfo() -> dict[str, int]:
    with suppress(OSError):
        lines = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
        return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3}
    return {}


def _programs() -> Iterator[tuple[str, int]]:
    for pid in filter(str.isdecimal, os.listdir(PROC) if PROC.is_dir() else ()):
        with suppress(OSError, ValueError):  # it has ended meanwhile, or is a thread of the kernel
            status = dict(line.split(":", 1) for line in (PROC / pid / "status").read_text(errors="replace").splitlines())
            if "RssAnon" in status:  # not what it has mapped of files, which the page cache holds
                own = [int(status[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem")]
                yield status["Name"].strip(), sum(own)
