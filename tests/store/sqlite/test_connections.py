"""Opening a database file, also again in the same process and beside other processes."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

from gpuqueue.store import open_store
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
