"""When two names mean one model."""

from __future__ import annotations

import pytest

from gpuqueue.domain.models import full_name


@pytest.mark.parametrize(
    "other",
    ["nomic-embed-text:latest", "Nomic-Embed-Text", "library/nomic-embed-text", "registry.ollama.ai/library/nomic-embed-text"],
)
def test_two_names_of_one_model_are_equal(other: str) -> None:
    assert full_name("nomic-embed-text") == full_name(other)


def test_different_models_have_different_names() -> None:
    names = ["", "a", "a:b", "host:5000/a", "host:5000/a:b", "hf.co/a/b:Q4"]

    assert [full_name(name) for name in names] == ["", "a:latest", "a:b", "host:5000/a:latest", "host:5000/a:b", "hf.co/a/b:q4"]
