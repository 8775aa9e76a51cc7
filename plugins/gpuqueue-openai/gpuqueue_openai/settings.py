"""Reads the section `[openai]`. No error may show the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gpuqueue import ConfigurationError
from gpuqueue.plugins import BackendSettings, Table

NAME = "openai"  # of the plugin, of its section, and of the backend in its errors
PATIENCE = ("connect", "first_token", "gap", "total")
ENDPOINTS = ("/chat/completions", "/completions", "/embeddings", "/models")


@dataclass(frozen=True, slots=True)
class Settings:
    """The server's address, its time limits in seconds, and the memory that a job needs beyond what the server holds."""

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
    except ValueError:  # the port is not valid
        is_one = False
    if not is_one or any(sign in url for sign in "?# ") or not url.isprintable():
        raise table.error(f"url must look like {standard}")
    for path in ENDPOINTS:
        if parsed.path.endswith(path):
            raise table.error(f"url must not include {path}; it usually ends in /v1")
    if parsed.username and table.has("api_key"):
        raise table.error("set either a user and password in url, or api_key; a request can carry only one of them")
    return url


def _api_key(table: Table) -> str:
    setting = table.get("api_key")
    if setting is None:
        return ""
    key = setting.value.strip() if isinstance(setting.value, str) else ""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        # Not `setting.error`, which shows the value.
        raise ConfigurationError(f"{setting.where}: the key must be non-empty printable ASCII without spaces")
    return key
