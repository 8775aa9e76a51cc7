"""Owns the section `[openai]`; connects to nothing, and lets no error show the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gpuqueue import ConfigurationError
from gpuqueue.plugins import BackendSettings, Table

NAME = "openai"  # of the plugin, its section, and what its errors call the server that is away
PATIENCE = ("connect", "first_token", "gap", "total")
ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/models")


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server is, how patient to be with it, in seconds, and what a job needs of a card beside what it holds."""

    url: str = "http://127.0.0.1:8080/v1"
    api_key: str = field(default="", repr=False)
    connect_s: float = BackendSettings().connect_s
    first_token_s: float = BackendSettings().first_token_s
    gap_s: float = BackendSettings().gap_s
    total_s: float = BackendSettings().total_s
    vram_bytes: int = 0


def read_settings(table: Table) -> Settings:
    """Read the section, which may be empty. Raises: ConfigurationError."""
    table.expect(["url", "api_key", *PATIENCE, "vram"])
    standard = Settings()
    return Settings(
        url=_url(table, standard.url),
        api_key=_api_key(table),
        **{f"{key}_s": table.duration(key, getattr(standard, f"{key}_s"), positive=True) for key in PATIENCE},
        vram_bytes=table.size("vram", 0),
    )


def _url(table: Table, standard: str) -> str:
    url = table.text("url", standard, example=f'url = "{standard}"').strip().rstrip("/")
    try:
        parsed = urlsplit(url)
        is_one = bool(parsed.scheme in ("http", "https") and parsed.hostname) and parsed.port != 0
    except ValueError:  # a port that is none
        is_one = False
    if not is_one or any(sign in url for sign in "?# ") or not url.isprintable():
        raise table.error(f"the url must look like {standard}")
    for path in ENDPOINTS:
        if parsed.path.endswith(path):
            raise table.error(f"the url is what comes before {path}: it mostly ends in /v1")
    if parsed.username and table.has("api_key"):
        raise table.error("give a user and password in the url, or an api_key: a request carries only one of them")
    return url


def _api_key(table: Table) -> str:
    setting = table.get("api_key")
    if setting is None:
        return ""
    key = setting.value.strip() if isinstance(setting.value, str) else ""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        # Not the setting's own error: that one shows the value.
        raise ConfigurationError(f"{setting.where}: the key is a text of printable ASCII without spaces, and not empty")
    return key
