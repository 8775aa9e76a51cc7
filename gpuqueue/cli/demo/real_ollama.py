"""Asks a real Ollama before the demo starts which models it has and how large they may be; loads none."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from gpuqueue.contract.hookspecs import RegisterDevicesDetails
from gpuqueue.devices.nvml import Devices
from gpuqueue.domain.errors import BackendUnavailable, UsageError
from gpuqueue.domain.models import full_name
from gpuqueue.domain.settings import BackendSettings, DeviceSettings
from gpuqueue.executors.ollama_client import OllamaClient

QUERY_S = 5.0
LOADED_FACTOR = 1.5  # of a model's file: context and buffers come on top
LOADED_EXTRA_BYTES = 10**9


@dataclass(frozen=True, slots=True)
class RealOllama:
    """A real Ollama's models and the card's size; `model_bytes` is an estimate, `total_bytes` None without a driver here."""

    model_bytes: int
    has_embedding_model: bool
    total_bytes: int | None

    @property
    def budget_bytes(self) -> int:
        """What the demo may use: the whole card, or if its size is unknown, what the model may need."""
        return self.total_bytes or self.model_bytes


def ask_ollama(url: str, model: str, embedding_model: str) -> RealOllama:
    """Ask a real Ollama for its models. Raises: UsageError if it does not answer or lacks the model."""
    address = BackendSettings(url=url)
    try:
        names = OllamaClient(address).models(timeout_s=QUERY_S)
    except BackendUnavailable as error:
        raise UsageError(f"--ollama {url}: {error}") from None
    known = {full_name(name) for name in names}
    if full_name(model) not in known:
        raise UsageError(f"--model: Ollama at {url} has no model {model!r}. It has: {', '.join(sorted(names)) or 'no model'}")
    total_bytes = _card_bytes()
    model_bytes = int(_file_bytes(url, model) * LOADED_FACTOR) + LOADED_EXTRA_BYTES
    if total_bytes is not None:
        model_bytes = min(model_bytes, total_bytes)
    return RealOllama(model_bytes, full_name(embedding_model) in known, total_bytes)


def _file_bytes(url: str, model: str) -> int:
    listed = httpx.get(f"{url.rstrip('/')}/api/tags", timeout=QUERY_S).json().get("models", [])
    return max((int(item.get("size") or 0) for item in listed if full_name(str(item.get("name"))) == full_name(model)), default=0)


def _card_bytes() -> int | None:
    devices = Devices().register_devices(RegisterDevicesDetails((DeviceSettings("gpu0", 1),), ()))
    return devices["gpu0"].read().total_bytes
