"""Attributes GPU processes to their owners: Ollama, gpuqueue, another program, or unknown."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from gpuqueue.domain.device import DeviceProcess

Owner = Literal["ollama", "gpuqueue", "other", "unknown"]

RUNNERS = ("ollama", "ollama_llama_server", "llama-server")  # Ollama's names for them, version by version
PROC = Path("/proc")
DEEPEST = 16  # of a process's ancestors


class Kin(NamedTuple):
    """A process on this machine."""

    pid: int
    name: str


def owner_of(
    process: DeviceProcess, *, workers: Collection[int], has_ollama: bool, kin_of: Callable[[DeviceProcess], Sequence[Kin]]
) -> Owner:
    """Return a process's owner.

    `workers` are the process ids of this machine's workers, `has_ollama` says that an Ollama of the queue runs on the device,
    and `kin_of` finds the process and its ancestors, as far as they are visible from here.
    """
    kin = kin_of(process)
    if any(item.pid in workers for item in kin):
        return "gpuqueue"
    names = [process.name or "", *(item.name for item in kin)]
    # Other programs start a llama-server too: if its ancestors are visible, one of them must be an Ollama.
    is_runner = any(name.startswith("ollama") for name in names) or (process.name in RUNNERS and not kin)
    if is_runner and has_ollama:
        return "ollama"
    return "other" if process.name else "unknown"


def kin_here(process: DeviceProcess, proc: Path = PROC) -> list[Kin]:
    """Find a process on this machine and its ancestors, itself first.

    The driver uses the host's pids, while a container has its own. A process therefore matches only if both its pid and its
    name are those of the driver; otherwise the list is empty.
    """
    if process.name is None or process.name not in _names(proc / str(process.pid)):
        return []
    found: list[Kin] = []
    pid = process.pid
    while pid > 0 and len(found) < DEEPEST:
        name, parent = name_and_parent(proc / str(pid))
        if parent is None:
            break
        found.append(Kin(pid, name))
        pid = parent
    return found


def _names(folder: Path) -> set[str]:
    """Return the names that the driver may report for a process: its file's and the first word of its command line."""
    found = {name_and_parent(folder)[0]}
    try:
        found.add(os.path.basename((folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")))
        found.add(os.path.basename(os.readlink(folder / "exe")))  # only readable by its own user
    except OSError:
        pass
    return found - {""}


def name_and_parent(folder: Path) -> tuple[str, int | None]:
    """Return the name and the parent's pid of a process; ("", None) if the process or /proc does not exist."""
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:
        return "", None
    # `4001 (a name) S 1 …`: the name may itself contain spaces and brackets.
    before, _, after = text.rpartition(")")
    return before.partition("(")[2], int(after.split()[1])
