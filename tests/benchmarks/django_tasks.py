"""Owns the task of the Django application under load."""

from __future__ import annotations

from gpuqueue.integrations.django import task


@task
def add(a: int, b: int = 0) -> int:
    return a + b
