"""What workers agree on before they begin."""

from __future__ import annotations

from pathlib import Path

from gpuqueue.store import open_store
from gpuqueue.store.store import Store


def register(store: Store, worker_id: str, digest: str) -> bool:
    return store.workers.register(
        worker_id, host="h", pid=1, runtime_dir="/nowhere", queues=None, digest=digest, expires_at_us=10_000_000, now_us=0
    )


def test_of_two_workers_that_start_at_once_with_different_settings_one_must_ask_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "queue.db")
    mine, theirs = {"queues": {"a": {}}}, {"queues": {"b": {}}}
    assert store.workers.accept_configuration(digest="mine", settings=mine, force=False, now_us=0) is None
    # The other comes before this one has registered, sees nobody, and makes its own settings the shared ones.
    assert store.workers.accept_configuration(digest="theirs", settings=theirs, force=False, now_us=0) is None
    assert register(store, "other", "theirs")
    assert not register(store, "this", "mine")
    assert store.workers.accept_configuration(digest="mine", settings=mine, force=False, now_us=1) == theirs
    store.close()
