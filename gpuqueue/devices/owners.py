"""Owns whose a process on a device is: an Ollama's runner, gpuqueue's own, another program's, or unknown; ends none."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from gpuqueue.domain.device import DeviceProcess

Owner = Literal["ollama", "gpuqueue", "other", "unknown"]

RUNNERS = ("ollama", "ollama_llama_server", "llama-server")  # what Ollama called them, version by version
PROC = Path("/proc")
DEEPEST = 16  # of a process's ancestors


class Kin(NamedTuple):
    """A process of this machine."""

    pid: int
    name: str


def owner_of(
    process: DeviceProcess, *, workers: Collection[int], has_ollama: bool, kin_of: Callable[[DeviceProcess], Sequence[Kin]]
) -> Owner:
    """Say whose a process is.

    `workers` are the process ids of this machine's workers, `has_ollama` says that an Ollama of the queue computes on the
    device, and `kin_of` finds the process and its ancestors, where they can be seen from here.
    """
    kin = kin_of(process)
    if any(item.pid in workers for item in kin):
        return "gpuqueue"
    names = [process.name or "", *(item.name for item in kin)]
    # Others start a llama-server too: where its ancestors can be seen, one must be an Ollama.
    is_runner = any(name.startswith("ollama") for name in names) or (process.name in RUNNERS and not kin)
    if is_runner and has_ollama:
        return "ollama"
    return "other" if process.name else "unknown"


def kin_here(process: DeviceProcess, proc: Path = PROC) -> list[Kin]:
    """Find a process and its ancestors among those of this machine, itself first.

    The driver numbers processes as the host does, a container has numbers of its own: only a process of that number whose
    name is the one that the driver gives is taken for it, otherwise there are none.
    """
    if process.name is None or process.name not in _names(proc / str(process.pid)):
        return []
    found: list[Kin] = []
    pid = process.pid
    while pid > 0 and len(found) < DEEPEST:
        name, parent = _status(proc / str(pid))
        if parent is None:
            break
        found.append(Kin(pid, name))
        pid = parent
    return found


def _names(folder: Path) -> set[str]:
    """The names under which the driver may know a process: its file's and the first word of its command line."""
    found = {_status(folder)[0]}
    try:
        found.add(os.path.basename((folder / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")))
        found.add(os.path.basename(os.readlink(folder / "exe")))  # only its own user may look
    except OSError:
        pass
    return found - {""}


def _status(folder: Path) -> tuple[str, int | None]:
    """The name of a process and the number of its parent; ("", None) when there is no such process, or no /proc."""
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:
        return "", None
    # `4001 (a name) S 1 …`: the name may have spaces and brackets of its own.
    before, _, after = text.rpartition(")")
    return before.partition("(")[2], int(after.split()[1])
