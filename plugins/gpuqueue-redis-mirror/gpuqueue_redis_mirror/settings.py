"""Reads the section `[mirror]` of the configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from gpuqueue.plugins import Table, shown_url

SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the mirror is written, and how many finished jobs of each queue it keeps."""

    url: str
    prefix: str = "bull"
    keep_completed: int = 1_000
    keep_failed: int = 5_000


def read_settings(table: Table) -> Settings | None:
    """Read the section. None if `url` is not set: the mirror does nothing just because it is installed.

    Raises: ConfigurationError.
    """
    table.expect(["url", "prefix", "keep_completed", "keep_failed"])
    url = table.text("url", "", example="redis://localhost:6379/0")
    if not url:
        return None
    if urlsplit(url).scheme not in SCHEMES:
        raise table.error(f"url = {shown_url(url)!r}: use redis://HOST:PORT/DB, rediss://… with TLS, or unix:///PATH")
    prefix = table.text("prefix", "bull", example="bull")
    if not re.fullmatch(r"[A-Za-z0-9_{}-]+", prefix):
        raise table.error(f"prefix = {prefix!r}: use only letters, digits, _ and -; BullMQ's default is 'bull'")
    return Settings(
        url,
        prefix,
        keep_completed=table.integer("keep_completed", 1_000, minimum=0),
        keep_failed=table.integer("keep_failed", 5_000, minimum=0),
    )
