"""What the nouns say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from gpuqueue.testing.views import job


@pytest.mark.parametrize(
    ("needed", "arguments", "expected"),
    [
        ("", {}, ""),
        ("", {"model": "gemma4:e4b"}, "gemma4:e4b"),
        ("gemma3:1b", {"model": "gemma4:e4b"}, "gemma3:1b"),  # one that it falls back to
        ("gemma3:1b", {}, "gemma3:1b"),
        ("", {"model": 7}, ""),  # a task's own argument, which names no neural network
    ],
)
def test_a_job_is_expected_to_run_with_the_model_that_it_needs_or_else_names(
    needed: str, arguments: dict[str, Any], expected: str
) -> None:
    assert job(model=needed, arguments=arguments).expected_model == expected
