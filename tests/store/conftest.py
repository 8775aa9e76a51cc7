"""Owns what the store's tests share: a store of each engine, a live worker, and jobs made with few words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuqueue.store import open_store
from gpuqueue.store.store import Store
from tests.store.rows import Rows


def open_sqlite(folder: Path) -> Store:
    return open_store(folder / "jobs.db", write_timeout_s=120.0)


ENGINES: dict[str, Callable[[Path], Store]] = {"sqlite": open_sqlite}


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = ENGINES[request.param](tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def rows(store: Store) -> Rows:
    return Rows(store)
