"""Owns what the store's tests share: a store in a file of its own, a live worker, and jobs made with few words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuqueue.store import Store
from tests.store.rows import Rows


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "jobs.db", write_timeout_s=30.0)
    yield opened
    opened.close()


@pytest.fixture
def rows(store: Store) -> Rows:
    return Rows(store)
