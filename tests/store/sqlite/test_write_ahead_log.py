"""The write-ahead log stays small, and who keeps it from being so is named."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuqueue.store.log_readers import cause_of_large_log
from gpuqueue.store.sqlite import connections, write_ahead_log
from gpuqueue.store.store import Store
from tests.processes import read_until, started
from tests.store.conftest import open_sqlite
from tests.store.rows import Rows, at

READER = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
    "connection.execute('BEGIN'); connection.execute('SELECT count(*) FROM jobs').fetchone()\n"
    "print('reading', flush=True); sys.stdin.readline()"
)
LIMIT = 300_000
on_linux = pytest.mark.skipif(not write_ahead_log.LOCKS.exists(), reason="only Linux lists the locks of all processes")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(connections, "LOG_BYTES", LIMIT)
    monkeypatch.setattr(write_ahead_log, "LOG_BYTES", LIMIT)
    opened = open_sqlite(tmp_path)
    yield opened
    opened.close()


def write_much(rows: Rows) -> None:
    for _ in range(100):
        rows.enqueue(arguments=f'"{"x" * 5000}"')


def passive_checkpoint(store: Store) -> None:
    with store.engine.lent() as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


@contextmanager
def another_reader(store: Store) -> Iterator[int]:
    """A process that reads in a transaction until the block ends."""
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with started([sys.executable, "-c", READER, store.name], **pipes) as process:
        read_until(process.stdout, "reading")
        yield process.pid


def test_a_log_that_a_reader_made_large_is_cut_when_somebody_writes_after_it(store: Store, rows: Rows) -> None:
    with store.snapshot() as reads:
        reads.counts()
        write_much(rows)
        store.upkeep.checkpoint()
        assert store.upkeep.log_bytes() > LIMIT, "its reader needs it"
    passive_checkpoint(store)  # as a producer's own: it empties nothing
    assert store.upkeep.log_bytes() > LIMIT
    rows.enqueue()
    assert store.upkeep.log_bytes() <= LIMIT


def test_a_large_log_is_emptied_though_nobody_pauses_for_it(store: Store, rows: Rows) -> None:
    write_much(rows)
    assert store.upkeep.log_bytes() > LIMIT
    store.upkeep.checkpoint()
    assert store.upkeep.log_bytes() == 0
    assert rows.enqueue() == 101


def test_a_checkpoint_waits_for_no_writer_and_no_reader(store: Store, rows: Rows) -> None:
    write_much(rows)

    def while_writing(_connection: sqlite3.Connection) -> None:
        store.upkeep.checkpoint()

    store.engine.writer.run(while_writing)
    assert store.upkeep.log_bytes() > LIMIT
    with store.snapshot() as reads:
        reads.counts()
        store.upkeep.checkpoint()
    with store.engine.lent() as connection:
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (connections.READ_TIMEOUT_MS,)


@on_linux
def test_a_process_that_reads_in_a_long_transaction_is_named(store: Store, rows: Rows) -> None:
    with another_reader(store) as pid:
        assert store.upkeep.log_holders() == [], "nothing was written since"
        write_much(rows)
        assert store.upkeep.log_holders() == [pid]
        assert cause_of_large_log(store).startswith(f"process {pid} ({sys.executable} -c import sqlite3")
        store.workers.register(
            "the-worker", host=socket.gethostname(), pid=pid, queues=None, digest="d", runtime_dir="", expires_at_us=at(9),
            now_us=at(0),
        )  # fmt: skip
        assert cause_of_large_log(store) == (
            f"process {pid} (worker the-worker) keeps a read transaction open; end it, or stop the process"
        )
        with store.snapshot() as reads:
            reads.counts()
            write_much(rows)
            assert set(store.upkeep.log_holders() or ()) == {pid, os.getpid()}
    assert store.upkeep.log_holders() == []
    assert "faster than the log could be copied" in cause_of_large_log(store)


def test_where_nobody_can_know_the_process_it_is_said_how_to_find_it(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(write_ahead_log, "LOCKS", tmp_path / "none")
    with store.snapshot() as reads:
        reads.counts()
        write_much(rows)
        assert store.upkeep.log_holders() is None
        assert cause_of_large_log(store).endswith(f"find it with: fuser {store.name}")


def test_the_caches_of_many_readers_at_once_are_together_not_much_larger_than_one(store: Store) -> None:
    with store.engine.lent() as first, store.engine.lent() as second, store.engine.lent() as third:
        sizes = [connection.execute("PRAGMA cache_size").fetchone()[0] for connection in (first, second, third)]
    assert sizes == [-32_000, -16_000, -10_666]
