"""Words why a database's log is large: which process reads in a transaction that it does not end."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuqueue.store.store import Store

LONGEST_COMMAND = 80


def cause_of_large_log(store: Store) -> str:
    """Say who keeps the log from being emptied, as far as that is known."""
    pids = store.upkeep.log_holders()
    if pids is None:
        return f"a process that cannot be identified from here keeps a read transaction open; find it with: fuser {store.name}"
    if not pids:
        return "jobs were written faster than the log could be copied into the database"
    with store.reading() as reads:
        host = socket.gethostname()
        workers = {row.info.pid: row.info.id for row in reads.workers(now_us=0) if row.info.host == host}
    readers = " and ".join(_named(pid, workers.get(pid)) for pid in pids)
    return f"{readers} {'keeps' if len(pids) == 1 else 'keep'} a read transaction open; end it, or stop the process"


def _named(pid: int, worker: str | None) -> str:
    if pid == os.getpid():
        return f"this process ({pid})"
    if worker is not None:
        return f"process {pid} (worker {worker})"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        command = ""
    return f"process {pid} ({command[:LONGEST_COMMAND]})" if command else f"process {pid}"
