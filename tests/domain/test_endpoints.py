"""Which backends stand where, and how their addresses are shown."""

from __future__ import annotations

import pytest

from gpuqueue.domain.endpoints import standing_on
from gpuqueue.domain.settings import BackendSettings
from gpuqueue.plugins import shown_url

TIED, OTHER, FREE = (BackendSettings(name=device or "free", device=device) for device in ("gpu0", "gpu1", ""))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("http://ann:secret@gpu.example:11434/ollama/", "http://gpu.example:11434/ollama/"),
        ("http://ann@[::1]:11434", "http://[::1]:11434"),
        ("redis://:p@ss@cache:6379/0", "redis://cache:6379/0"),
        ("unix:///run/redis.sock?db=2&password=secret", "unix:///run/redis.sock"),
    ],
)
def test_a_url_is_shown_without_its_user_and_password(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    ("device_count", "standing"),
    [(1, [TIED, FREE]), (2, [TIED])],  # of two cards, which one a free Ollama uses is its own business
)
def test_an_ollama_that_is_tied_to_no_card_stands_on_the_only_one(device_count: int, standing: list[BackendSettings]) -> None:
    assert standing_on("gpu0", [TIED, OTHER, FREE], device_count=device_count) == standing
