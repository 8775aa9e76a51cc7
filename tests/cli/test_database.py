"""`gpuqueue db`: checking, pruning, backing up and vacuuming, and what each refuses."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue, Worker
from gpuqueue.store.sqlite.migrate import head
from gpuqueue.testing.waiting import DEADLINE_S

Run = Callable[..., Any]


@pytest.fixture
def gq(configured: Path) -> Iterator[GPUQueue]:
    """A queue with three completed jobs, two discarded ones and one that waits."""
    with GPUQueue.from_config("gpuqueue.toml") as gq:

        @gq.task(name="send", queue="mail", max_attempts=1)
        def send(fails: bool = False) -> str:
            if fails:
                raise RuntimeError("no")
            return "x" * 5000

        gq.enqueue_many([("send", {"fails": number > 3}) for number in range(1, 6)])
        Worker(gq, queues=["mail"], burst=True).run()
        send.enqueue()
        yield gq


def change(gq: GPUQueue, statement: str) -> None:
    gq.store.engine.writer.run(lambda connection: connection.execute(statement))


def test_a_file_in_order_has_nothing_wrong(gq: GPUQueue, run: Run) -> None:
    ran = run("db", "check")
    assert (ran.status, ran.out, ran.err) == (0, f"{gq.database}: no problems found\n", "")
    assert json.loads(run("db", "check", "--json").out) == {
        "ok": True, "database": str(gq.database), "version": head(), "findings": [],
    }  # fmt: skip


def test_what_is_wrong_is_named_with_what_to_do(gq: GPUQueue, run: Run) -> None:
    change(gq, "DELETE FROM jobs WHERE id = 1")
    ran = run("db", "check")
    assert ran.status == 1
    assert "wrong  counters: 3 completed jobs of mail are counted, but 2 are stored" in ran.out
    assert "wrong  payloads: rows in `payloads` for jobs that do not exist: job 1" in ran.out
    assert f"→ they only take up space; delete them:\n         sqlite3 {gq.database} 'DELETE FROM payloads" in ran.out
    found = json.loads(run("db", "check", "--json").out)
    assert found["ok"] is False
    assert {finding["check"] for finding in found["findings"]} == {"counters", "payloads"}


def test_an_older_file_is_checked_as_far_as_that_goes(gq: GPUQueue, run: Run) -> None:
    change(gq, "UPDATE gpuqueue_version SET version_num = '0001'")
    ran = run("db", "check")
    assert ran.status == 0
    assert "the rows were not checked: their schema is 0001; first run: gpuqueue db upgrade" in ran.err


def test_an_upgrade_says_from_what(configured: Path, run: Run) -> None:
    (configured / "jobs.db").touch(mode=0o600)
    first = json.loads(run("db", "upgrade", "--json").out)
    assert first == {"database": str(configured / "jobs.db"), "before": None, "version": head(), "upgraded": True}
    assert json.loads(run("db", "upgrade", "--json").out)["upgraded"] is False


def test_pruning_deletes_what_retention_lets_go(gq: GPUQueue, configured: Path, run: Run) -> None:
    ran = run("db", "prune")
    assert ran.out == "no jobs to delete; kept: completed 7d, cancelled 7d, discarded 30d\n"
    change(gq, "UPDATE jobs SET finished_at = finished_at - 8 * 86400000000 WHERE id <> 6")
    assert run("db", "prune").out == "3 jobs deleted (3 completed)\n"
    with (configured / "gpuqueue.toml").open("a") as file:
        file.write("[retention]\ndiscarded = '1d'\ncancelled = 'forever'\n")
    assert json.loads(run("db", "prune", "--json").out) == {"pruned": {"completed": 0, "cancelled": 0, "discarded": 2}}
    assert gq.counts()["mail"] == {"available": 1}


def test_pruning_by_age_and_state(gq: GPUQueue, run: Run) -> None:
    assert json.loads(run("db", "prune", "--older-than", "1h", "--json").out)["pruned"] == {
        "completed": 0, "cancelled": 0, "discarded": 0,
    }  # fmt: skip
    assert json.loads(run("db", "prune", "--older-than", "0s", "--state", "discarded", "--json").out) == {
        "pruned": {"discarded": 2}
    }
    assert run("db", "prune", "--older-than", "0s").out == "3 jobs deleted (3 completed)\n"
    assert run("db", "check").status == 0


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--older-than", "a week"], ["--older-than", "a week"]),
        (["--state", "complete"], ["'complete'", "did you mean 'completed'"]),
        (["--state", "running"], ["'running'", "a finished state"]),
    ],
)
def test_a_wrong_pruning_deletes_nothing(gq: GPUQueue, run: Run, options: list[str], names: list[str]) -> None:
    ran = run("db", "prune", *options)
    assert ran.status == 2
    for name in names:
        assert name in ran.err
    assert gq.counts()["mail"] == {"available": 1, "completed": 3, "discarded": 2}


def test_a_backup_is_private_and_whole(gq: GPUQueue, configured: Path, run: Run) -> None:
    ran = run("db", "backup", "copy.db")
    file = configured / "copy.db"
    assert ran.status == 0
    assert ran.out.startswith(f"{file}: ")
    assert ran.out.endswith(" kB, 6 jobs, checked\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with GPUQueue(file) as copy:
        assert copy.job(1).result(timeout_s=DEADLINE_S) == "x" * 5000
    ran = run("db", "backup", "copy.db")
    assert ran.status == 2
    assert f"{file} already exists; use --force" in ran.err
    found = json.loads(run("db", "backup", "copy.db", "--force", "--json").out)
    assert found == {
        "database": str(gq.database), "backup": str(file), "size_bytes": file.stat().st_size, "jobs": 6, "findings": [],
    }  # fmt: skip


def test_a_backup_beside_a_running_worker_takes_the_moment(gq: GPUQueue, run: Run) -> None:
    with Worker(gq, queues=["mail"]):
        assert run("db", "backup", "copy.db").status == 0
        assert gq.job(6).result(timeout_s=DEADLINE_S) == "x" * 5000


def test_a_backup_of_contradictions_is_made_and_warned_of(gq: GPUQueue, run: Run) -> None:
    change(gq, "UPDATE counters SET count = 9 WHERE state = 'completed'")
    ran = run("db", "backup", "copy.db")
    assert ran.status == 0
    assert "Warning: the copy is complete, but has the same errors as the database (counters)" in ran.err
    assert "gpuqueue db check" in ran.err


def test_a_vacuum_says_how_much_smaller_the_file_became(gq: GPUQueue, run: Run) -> None:
    gq.enqueue_many([("send", {})] * 200)
    gq.cancel_all("mail")
    Worker(gq, queues=["mail"], burst=True).run()
    gq.enqueue("send")
    change(gq, "INSERT INTO payloads SELECT id, 'extra', printf('%.20000c', 'x') FROM jobs")
    change(gq, "DELETE FROM payloads WHERE kind = 'extra'")
    found = json.loads(run("db", "vacuum", "--json").out)
    assert list(found) == ["database", "before_bytes", "after_bytes", "finished"]
    assert found["before_bytes"] > 3_000_000 > 500_000 > found["after_bytes"]
    assert found["finished"] is True
    assert "now " in run("db", "vacuum").out
    assert gq.job(1).result(timeout_s=DEADLINE_S) == "x" * 5000


def test_a_vacuum_is_refused_while_a_worker_lives_or_a_transaction_is_open(gq: GPUQueue, run: Run) -> None:
    with Worker(gq, queues=["mail"]) as worker:
        ran = run("db", "vacuum")
        assert ran.status == 2
        assert worker.id in ran.err
        assert "Stop the workers first" in ran.err
    with closing(sqlite3.connect(gq.database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        ran = run("db", "vacuum")
        assert ran.status == 2
        assert f"another connection is using {gq.database}" in ran.err
    assert run("db", "vacuum").status == 0


@pytest.mark.parametrize("command", [["version"], ["upgrade"], ["check"], ["prune"], ["backup", "copy.db"], ["vacuum"]])
def test_without_a_database_nothing_is_made(configured: Path, run: Run, command: list[str]) -> None:
    ran = run("db", *command)
    assert ran.status == 2
    assert f"no database at {configured / 'jobs.db'} yet" in ran.err
    assert [file.name for file in configured.iterdir()] == ["gpuqueue.toml"]


# --- restoring ---


def test_a_backup_is_restored_and_what_was_there_is_kept_and_named(gq: GPUQueue, run: Run, configured: Path) -> None:
    run("db", "backup", "copy.db")
    gq.enqueue("send")
    ran = run("db", "restore", "copy.db")
    (kept,) = [file for file in configured.glob("*.before-restore-*") if not file.name.endswith(("-wal", "-shm"))]
    assert (ran.status, ran.err) == (0, "")
    assert f"{gq.database}: " in ran.out
    assert f"6 jobs, restored from {configured / 'copy.db'} and checked" in ran.out
    assert str(kept) in ran.out
    with closing(sqlite3.connect(kept)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (7,)
    with GPUQueue.from_config("gpuqueue.toml") as restored:
        assert len(restored.jobs()) == 6


def test_no_backup_is_restored_beside_a_worker(gq: GPUQueue, run: Run, configured: Path) -> None:
    run("db", "backup", "copy.db")
    before = gq.database.stat().st_ino
    with Worker(gq, queues=["mail"]) as worker:
        ran = run("db", "restore", "copy.db")
    assert ran.status == 2
    assert f"workers are alive and would go on with the old file: {worker.id}" in ran.err
    assert "Nothing was changed" in ran.err
    assert gq.database.stat().st_ino == before
    assert not list(configured.glob("*.before-restore-*"))


def test_a_backup_is_restored_where_the_database_is_gone(gq: GPUQueue, run: Run, configured: Path) -> None:
    run("db", "backup", "copy.db")
    gq.close()
    for file in configured.glob(f"{gq.database.name}*"):
        file.unlink()
    assert run("db", "restore", "copy.db").status == 0
    assert "6 jobs" in run("db", "backup", "again.db").out
