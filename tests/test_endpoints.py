"""Which backends stand where, and how their addresses are shown."""

from __future__ import annotations

import pytest

from gpuqueue.plugins import shown_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("http://ann:secret@gpu.example:11434/ollama/", "http://gpu.example:11434/ollama/"),
        ("http://ann@[::1]:11434", "http://[::1]:11434"),
        ("redis://:p@ss@cache:6379/0", "redis://cache:6379/0"),
    ],
)
def test_a_url_is_shown_without_its_user_and_password(url: str, shown: str) -> None:
    assert shown_url(url) == shown
