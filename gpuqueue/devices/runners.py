"""Finds out from /proc for how many requests at once the Ollamas of this machine were started; asks none of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from gpuqueue.devices.owners import PROC, name_and_parent

OLLAMA_PORT = 11434
VARIABLE = "OLLAMA_NUM_PARALLEL"
FLAGS = ("-np", "--parallel")


class OllamaProcess(NamedTuple):
    """An `ollama serve`: its port and its variable (None: not readable, or not set), and what its runners were started for.

    `runners` is {pid: requests at once}.
    """

    pid: int
    port: int | None
    num_parallel: int | None
    runners: Mapping[int, int]


def ollamas_here(proc: Path = PROC) -> list[OllamaProcess]:
    """Return the Ollamas of this machine, as far as they are visible to this user."""
    lines = {int(folder.name): _words(folder / "cmdline") for folder in _folders(proc)}
    found = []
    for pid, words in sorted(lines.items()):
        if len(words) < 2 or os.path.basename(words[0]) != "ollama" or "serve" not in words[1:3]:
            continue
        runners = {
            other: slots
            for other, line in lines.items()
            if (slots := _slots(line)) is not None and name_and_parent(proc / str(other))[1] == pid
        }
        environment = _words(proc / str(pid) / "environ")
        variables = dict(word.partition("=")[::2] for word in environment)
        port = _port(variables.get("OLLAMA_HOST", "")) if environment else None
        found.append(OllamaProcess(pid, port, _count(variables.get(VARIABLE, "")), runners))
    return found


def _folders(proc: Path) -> list[Path]:
    try:
        return [folder for folder in proc.iterdir() if folder.name.isdigit()]
    except OSError:
        return []


def _words(file: Path) -> list[str]:
    try:
        return [word for word in file.read_bytes().decode(errors="replace").split("\0") if word]
    except OSError:
        return []


def _slots(words: Sequence[str]) -> int | None:
    """Return how many requests at once a runner's command line names."""
    for word, following in pairwise([*words, ""]):
        flag, _, value = word.partition("=")
        if flag in FLAGS:
            return _count(value or following)
    return None


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,5}", text.strip()) else None


def _port(host: str) -> int:
    match = re.search(r":([0-9]{1,5})/?$", host.strip())
    return int(match[1]) if match else OLLAMA_PORT
