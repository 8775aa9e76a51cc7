"""Opening a database file, also again in the same process and beside other processes."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuqueue.domain.errors import StoreError
from gpuqueue.store import open_store
from gpuqueue.store.sqlite.engine import SQLite
from tests.conftest import fork, forks
from tests.processes import LONGEST_S

VISITOR = """
import sys
from pathlib import Path
from gpuqueue.store import open_store
store = open_store(Path(sys.argv[1]))
store.queues.ensure("visitor")
store.close()
"""


def test_a_second_store_of_one_process_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    first, second = open_store(path), open_store(path)
    first.queues.ensure("mine")
    log = Path(f"{path}-wal")
    inode = log.stat().st_ino
    # A process that closes the file last removes its log; this one must see that others still use it.
    subprocess.run([sys.executable, "-c", VISITOR, str(path)], check=True, timeout=LONGEST_S)
    assert log.stat().st_ino == inode
    first.close()
    second.close()


def test_a_new_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path / "queue.db")
    assert stat.S_IMODE((tmp_path / "queue.db").stat().st_mode) == 0o600
    store.close()


@pytest.mark.parametrize("name", ["100%25", "a?b=c", "#1", "a b", "sqlite:", "%2e%2e", "ü"])
def test_any_path_is_the_file_that_is_opened(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    store = open_store(folder / f"{name}.db")
    store.queues.ensure("mine")
    store.close()
    assert list(tmp_path.iterdir()) == [folder]
    assert [file.name for file in folder.iterdir()] == [f"{name}.db"]
    assert stat.S_IMODE((folder / f"{name}.db").stat().st_mode) == 0o600


ALICE, BOB, GROUP = 65531, 65532, 65533


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder of one user, in which that user has a queue's file; any user may reach it."""
    folder = Path(tempfile.mkdtemp(prefix="gpuqueue-"))
    os.chown(folder, ALICE, ALICE)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def opened_as(uid: int, path: Path, *, leaves_log: bool = False) -> str:
    """Open a queue's file as another user, and write to it; returns the error's text, or nothing."""
    reading, writing = os.pipe()
    pid = fork()
    if pid == 0:
        said = "the child failed"
        try:
            os.setgroups([GROUP])
            os.setgid(uid)
            os.setuid(uid)
            engine = SQLite(path, synchronous="normal", patient=False, write_timeout_s=9.0, now_us=lambda: 0)
            engine.queues.ensure(f"of-{uid}")
            said = ""
            if not leaves_log:
                engine.close()
        except StoreError as error:
            said = str(error)
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        text = told.read()
    os.waitpid(pid, 0)
    return text


@forks
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be several users")
def test_a_second_user_is_told_what_the_permissions_must_be_and_then_can_use_the_file(
    shared_folder: Path, tmp_path: Path
) -> None:
    open_store(tmp_path / "loads-everything.db").close()
    path = shared_folder / "queue.db"
    assert opened_as(ALICE, path, leaves_log=True) == ""
    told = opened_as(BOB, path)
    assert f"{shared_folder} belongs to uid {ALICE} (mode 0755), and this process runs as uid {BOB}" in told
    for command in re.findall(r"(?:chgrp|chmod) [^;]+", told.partition("files in it: ")[2]):
        subprocess.run(command.replace("GROUP", str(GROUP)), shell=True, check=True)
    assert [opened_as(uid, path) for uid in (BOB, ALICE, BOB)] == ["", "", ""]
